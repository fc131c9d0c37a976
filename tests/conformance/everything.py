"""The server that the official conformance suite expects: `everything.py [stdio | http PORT]`.

Names, texts and shapes are the suite's; the server is the SDK's. Tools that ask the client
something do it as the client's era wants it: by a request within the session, or by an
`input_required` result.
"""

import asyncio
import base64
import json
import sys
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import Prompt, UserMessage
from mcp.shared.exceptions import MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field
from tasks import Tasks

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGOoBwAAgQCA05RTSgAAAABJRU5ErkJggg=="
)
SILENCE = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="
STEP_S = 0.05

server = MCPServer(name="everything", version="1", extensions=[Tasks()])


# ---- content -------------------------------------------------------------------------------


@server.tool()
def test_simple_text() -> str:
    """One text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> list[ImageContent]:
    """One image."""
    return [ImageContent(type="image", data=PIXEL, mime_type="image/png")]


@server.tool()
def test_audio_content() -> list[AudioContent]:
    """One sound."""
    return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


def embedded(uri: str, kind: str, text: str) -> EmbeddedResource:
    contents = TextResourceContents(uri=uri, mime_type=kind, text=text)
    return EmbeddedResource(type="resource", resource=contents)


@server.tool()
def test_embedded_resource() -> list[EmbeddedResource]:
    """One resource."""
    text = "This is an embedded resource content."
    return [embedded("test://embedded-resource", "text/plain", text)]


@server.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Text, image and resource at once."""
    body = json.dumps({"test": "data", "value": 123})
    return [
        TextContent(type="text", text="Multiple content types test:"),
        ImageContent(type="image", data=PIXEL, mime_type="image/png"),
        embedded("test://mixed-content-resource", "application/json", body),
    ]


@server.tool()
def test_error_handling() -> str:
    """An error."""
    raise RuntimeError("This tool intentionally returns an error for testing")


@server.tool()
def test_x_mcp_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "",  # noqa: PT028 - no test
) -> str:
    """An argument that HTTP clients repeat in a header."""
    return f"region={region}"


# ---- while a call runs ---------------------------------------------------------------------


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Three log messages."""
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(text)
        await asyncio.sleep(STEP_S)
    return "Tool with logging executed successfully"


@server.tool()
async def test_logging_tool(ctx: Context) -> str:
    """One log message, for those who asked for it."""
    await ctx.info("logged")
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Progress in three steps."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100, f"Completed step {done} of 100")
        await asyncio.sleep(STEP_S)
    meta = ctx.request_context.meta
    return str((meta or {}).get("progress_token"))


@server.tool()
def test_missing_capability(ctx: Context) -> str:
    """Refused to clients that cannot be asked to sample."""
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            code=MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This tool needs a client that offers sampling",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return "The client offers sampling."


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """A tool comes and goes."""
    server.add_tool(lambda: "here", name="passing")
    server.remove_tool("passing")
    await ctx.notify_tools_changed()
    return "the tools changed"


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """A prompt comes and goes."""
    server.add_prompt(Prompt.from_function(lambda: "here", name="passing", description="passes"))
    server.remove_prompt("passing")
    await ctx.notify_prompts_changed()
    return "the prompts changed"


# ---- questions -----------------------------------------------------------------------------


def form(message: str, **properties: dict[str, Any]) -> ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(text: str, max_tokens: int = 100) -> CreateMessageRequest:
    said = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    params = CreateMessageRequestParams(messages=[said], max_tokens=max_tokens)
    return CreateMessageRequest(params=params)


async def answer_to(ctx: Context, question: InputRequest) -> Any:
    """What the client answers, or the result that asks it to."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        responses = ctx.input_responses or {}
        return responses.get("q") or InputRequiredResult(input_requests={"q": question})
    if isinstance(question, ElicitRequest):
        params = question.params
        assert isinstance(params, ElicitRequestFormParams)
        schema, related = params.requested_schema, ctx.request_id
        return await ctx.session.elicit_form(params.message, schema, related)
    assert isinstance(question, CreateMessageRequest)
    sampling = question.params
    return await ctx.session.create_message(
        messages=sampling.messages,
        max_tokens=sampling.max_tokens,
        related_request_id=ctx.request_id,
    )


def text_of(answer: object) -> str:
    if isinstance(answer, CreateMessageResult) and isinstance(answer.content, TextContent):
        return answer.content.text
    return "?"


def field_of(answer: object, name: str) -> Any:
    return (answer.content or {}).get(name) if isinstance(answer, ElicitResult) else None


def described(answer: Any, prefix: str) -> str:
    return f"{prefix}: action={answer.action}, content={json.dumps(answer.content)}"


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str | InputRequiredResult:
    """The client's model is asked."""
    answer = await answer_to(ctx, sample(prompt))
    asks = isinstance(answer, InputRequiredResult)
    return answer if asks else f"LLM response: {text_of(answer)}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str | InputRequiredResult:
    """The client's user is asked."""
    answer = await answer_to(ctx, form(message, response={"type": "string"}))
    asks = isinstance(answer, InputRequiredResult)
    return answer if asks else described(answer, "User response")


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str | InputRequiredResult:
    """A form with defaults."""
    question = form(
        "Please say who you are",
        name={"type": "string", "default": "John Doe"},
        age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5},
        status={
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        verified={"type": "boolean", "default": True},
    )
    answer = await answer_to(ctx, question)
    asks = isinstance(answer, InputRequiredResult)
    return answer if asks else described(answer, "Elicitation completed")


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str | InputRequiredResult:
    """A form with every kind of choice."""
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]
    question = form(
        "Please choose",
        untitledSingle={"type": "string", "enum": plain},
        titledSingle={"type": "string", "oneOf": titled},
        legacyEnum={"type": "string", "enum": plain, "enumNames": ["One", "Two", "Three"]},
        untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": titled}},
    )
    answer = await answer_to(ctx, question)
    asks = isinstance(answer, InputRequiredResult)
    return answer if asks else described(answer, "Elicitation completed")


@server.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    """The same, for a client that watches the stream."""
    answer = await answer_to(ctx, form("Go on?", ok={"type": "boolean"}))
    asks = isinstance(answer, InputRequiredResult)
    return answer if asks else described(answer, "Answered")


# ---- questions by result, the modern way ---------------------------------------------------


def name_form(message: str = "What is your name?") -> ElicitRequest:
    return form(message, name={"type": "string"})


def confirm_form() -> ElicitRequest:
    return form("Please confirm", ok={"type": "boolean"})


def asking(state: str | None = None, **questions: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=dict(questions), request_state=state)


def given(ctx: Context, name: str) -> Any:
    return (ctx.input_responses or {}).get(name)


@server.tool()
def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """A form."""
    answer = given(ctx, "user_name")
    if answer is None:
        return asking(user_name=name_form())
    return f"Hello, {field_of(answer, 'name')}!"


@server.tool()
def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """A prompt."""
    answer = given(ctx, "capital_question")
    if answer is None:
        return asking(capital_question=sample("What is the capital of France?"))
    return f"Model said: {text_of(answer)}"


@server.tool()
def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """The client's roots."""
    answer = given(ctx, "client_roots")
    if answer is None:
        return asking(client_roots=ListRootsRequest())
    return f"{len(answer.roots) if isinstance(answer, ListRootsResult) else 0} roots"


@server.tool()
def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """A form with a state beside it."""
    if given(ctx, "confirm") is not None and ctx.request_state == "mine":
        return "state-ok: confirmed"
    return asking("mine", confirm=confirm_form())


@server.tool()
def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Three questions at once."""
    questions: dict[str, InputRequest] = {
        "user_name": name_form(),
        "greeting": sample("Generate a greeting", 50),
        "client_roots": ListRootsRequest(),
    }
    if questions.keys() <= (ctx.input_responses or {}).keys():
        return "All inputs received."
    return asking("several", **questions)


@server.tool()
def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Three rounds, each building on the one before."""
    state = json.loads(ctx.request_state or "{}")
    if state.get("round") == 1 and given(ctx, "step1") is not None:
        state = {"round": 2, "name": field_of(given(ctx, "step1"), "name")}
        color = form("Step 2: What is your favorite color?", color={"type": "string"})
        return asking(json.dumps(state), step2=color)
    if state.get("round") == 2 and given(ctx, "step2") is not None:
        return f"{state['name']} likes {field_of(given(ctx, 'step2'), 'color')}."
    return asking(json.dumps({"round": 1}), step1=name_form("Step 1: What is your name?"))


@server.tool()
def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """A state that must come back as it went."""
    if ctx.request_state is None:
        return asking("round-1", confirm=confirm_form())
    return f"state-ok: {ctx.request_state}"


@server.tool()
def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
    """Only what the client offers."""
    offered = ctx.client_capabilities
    questions: dict[str, InputRequest] = {}
    if offered is None or offered.sampling is not None:
        questions["sample"] = sample("Say hello", 50)
    if offered is None or offered.elicitation is not None:
        questions["ask"] = name_form()
    return asking("by capability", **questions)


# ---- resources, prompts, the rest ----------------------------------------------------------


@server.resource("test://static-text")
def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """An image."""
    return base64.b64decode(PIXEL)


@server.resource("test://watched-resource")
def watched() -> str:
    """A text to subscribe to."""
    return "Watched resource content"


@server.resource("test://template/{id}/data")
def by_template(id: str) -> str:  # noqa: A002 - the template's name
    """A text per id."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def user(content: Any) -> UserMessage:
    return UserMessage(role="user", content=content)


@server.prompt()
def test_simple_prompt() -> list[UserMessage]:
    """No arguments."""
    return [user(TextContent(type="text", text="This is a simple prompt for testing."))]


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    """Two arguments."""
    text = f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"
    return [user(TextContent(type="text", text=text))]


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
    """A resource within."""
    text = TextContent(type="text", text="Please process the embedded resource above.")
    return [user(embedded(resourceUri, "text/plain", "Embedded text.")), user(text)]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """An image within."""
    image = ImageContent(type="image", data=PIXEL, mime_type="image/png")
    text = TextContent(type="text", text="Please analyze the image above.")
    return [user(image), user(text)]


@server.prompt()
def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    """A form before the prompt."""
    answer = given(ctx, "user_context")
    if answer is None:
        question = form("What context should the prompt use?", context={"type": "string"})
        return asking(user_context=question)
    text = f"Use the following context: {field_of(answer, 'context')}"
    return [user(TextContent(type="text", text=text))]


@server.completion()
async def complete(*_: Any) -> Completion:
    """Nothing to propose."""
    return Completion(values=[], total=0, has_more=False)


async def accepted(_ctx: Any, _params: Any) -> EmptyResult:
    return EmptyResult()


for method, params in (
    ("logging/setLevel", SetLevelRequestParams),
    ("resources/subscribe", SubscribeRequestParams),
    ("resources/unsubscribe", UnsubscribeRequestParams),
):
    server._lowlevel_server.add_request_handler(method, params, accepted)


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run("stdio")
