"""What a zygote makes of what its server answers while it is played through."""

import os
import threading

import pytest

from vsm.processes.zygote_program import converse


@pytest.mark.parametrize("answer", [b"1", b"null", b'"text"', b"[]", b"{}"])
def test_a_server_may_answer_the_first_questions_with_any_json(answer: bytes) -> None:
    """Such as a number that it prints before it serves: it is no reason not to fork it."""
    questions, question = os.pipe()
    answers, write = os.pipe()

    def serve() -> None:
        with open(questions, "rb") as asked, open(write, "wb", buffering=0) as answering:
            for line in asked:
                if b'"id"' in line:
                    answering.write(answer + b"\n")

    server = threading.Thread(target=serve)
    server.start()
    try:
        converse(question, answers)
    finally:
        os.close(question)
        server.join(10)
        os.close(answers)
    assert not server.is_alive()
