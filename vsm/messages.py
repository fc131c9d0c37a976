"""Every message between vsm's processes, as strict pydantic models.

Owns what is valid on the control links, the template's link and the channels; a receiver parses
with the parser of its direction and drops what does not fit. Pure data, in every process that
holds a link (the launcher has its own, smaller framing). No field is a path that is opened or
code that is run. It is one file so that what may be said can be read in one place.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationInfo,
    model_serializer,
)

from vsm.core.channels import NOTES, REPORTS, RULES

Name: TypeAlias = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Text: TypeAlias = Annotated[str, Field(max_length=4096)]
MOST_NUMBER: Final = 2.0**64
MAX_RECORD_BYTES: Final = 96 * 1024  # of a session, as compact JSON


def _with_plain_numbers(body: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """From a wire no number comes that a receiver cannot add up: no nan, none without bound."""
    waiting: list[Any] = [body] if info.mode == "json" else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int | float) and not -MOST_NUMBER <= value <= MOST_NUMBER:
            raise ValueError("a number that is none, or beyond 2^64")
    return body


def _small(record: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """What is kept of a session goes to a successor in one message, with room for the rest."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    if info.mode == "json" and len(text.encode()) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of more than {MAX_RECORD_BYTES} bytes")
    return record


Amount: TypeAlias = Annotated[int | float, Field(ge=0, le=MOST_NUMBER)]
Body: TypeAlias = Annotated[dict[str, JsonValue], AfterValidator(_with_plain_numbers)]
Availability: TypeAlias = Literal[
    "starting", "ready", "restarting", "backing_off", "quarantined", "stopped"
]


_STRICT: Final = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Message(BaseModel):
    """What all messages share: strict types, no unknown field, the names of descriptors."""

    model_config = _STRICT

    is_urgent: ClassVar[bool] = False

    fds: tuple[str, ...] = Field(default=(), max_length=16)

    def to_wire(self) -> bytes:
        """One JSON object."""
        return self.model_dump_json().encode()


# ---- supervisor → system -------------------------------------------------------------------


class Row(BaseModel):
    """A part of messages of which there may be hundreds: what is as by default is not written."""

    model_config = _STRICT

    @model_serializer(mode="wrap", when_used="json")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, written = type(self).model_fields, write(self)
        return {
            name: value
            for name, value in written.items()
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }


class ResilienceRow(Row):
    """[integrations.NAME.resilience]; see vsm.configuration.resilience."""

    failures: int = 5
    successes: int = 3
    open_s: float = 60.0
    retry_tools: tuple[str, ...] = ()
    max_waiting: int = 256
    health_interval_s: float = 30.0
    health_timeout_s: float = 10.0
    call_limit_s: float = 3600.0
    keep_arguments: bool = False


class InstanceTerms(Row):
    """How many servers an integration has, and who gets one: see vsm.core.instance_demand."""

    kind: Literal["pool", "session"]
    least: int = Field(default=0, ge=0)
    most: int = Field(default=1, ge=1)
    spares: int = Field(default=0, ge=0)
    idle_stop_s: float = Field(default=0.0, ge=0)
    lazy: bool = False
    resident: bool = False


class IntegrationRow(Row):
    """What S1 must know of an integration to route to it."""

    name: Name
    prefix: str | None = None  # None: the name; "": bare
    era: Literal["auto", "legacy", "modern"] = "auto"
    start_timeout_s: float = 30.0
    call_timeout_s: float = 60.0
    concurrency: int = 64
    max_frame_bytes: int = 8 * 1024 * 1024
    resilience: ResilienceRow = ResilienceRow()
    trust: Literal["first-use", "approve", "off"] = "off"
    most_argument_bytes: int = 0
    most_argument_depth: int = 0
    strict_arguments: bool = False
    audit_contents_bytes: int = Field(default=0, ge=0)
    remote: bool = False
    credentials: tuple[str, ...] = ()  # clients that the remote server knows by their own
    instances: InstanceTerms | None = None  # None: one, which the supervisor starts


class Grant(Row):
    """What a person approved beforehand, for a while: one tool of one rule to one client.

    Args:
        rule: the digest of the rule; an edited rule is another one. until_s: CLOCK_BOOTTIME.
    """

    rule: str = Field(max_length=64)
    client: str = Field(max_length=64)
    integration: Name
    asks: str = Field(max_length=16)
    name: str = Field(max_length=512)
    until_s: float = Field(ge=0)


class ClientRow(Row):
    """What one configured client sees; see vsm.gateway.views."""

    name: Name
    integrations: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ()
    search: bool = False
    token: str = Field(default="", repr=False)


class Start(Message):
    """The first message of a control link. S1 gets its listeners with it: fds "http", "unix"."""

    kind: Literal["start"] = "start"
    epoch: int = Field(ge=1)
    token: str = ""
    auth: Literal["token", "none"] = "token"
    integrations: tuple[IntegrationRow, ...] = ()
    clients: tuple[ClientRow, ...] = ()  # S1
    audit: Literal["all", "counted", "off"] = "off"  # S1: which calls go to its fd "calls"
    audit_rate: int = Field(default=1000, ge=1)
    list_wait_s: float | None = Field(default=None, ge=0)  # S1
    introspection: bool = False  # S1 offers vsm's own tools
    limits: Body = Field(default_factory=dict)  # integration → what its profile allows (S3)
    policy: Body = Field(default_factory=dict)  # S5: the operator's rules
    rules: str = Field(default="", max_length=64)  # S1: which rules S5 is going to publish
    grants: tuple[Grant, ...] = Field(default=(), max_length=100)  # S1
    spent: dict[str, int] = Field(default_factory=dict, max_length=256)  # S1: as it reported
    settings: Body = Field(default_factory=dict)  # the system's own tables of vsm.toml


class Attach(Message):
    """A server's pipes, fds ("stdin", "stdout"): ours to write and ours to read.

    Args:
        instance: its number, where the integration has several; else 0.
        beside: it is to take the place of one that serves: by these terms, and not before `switch`.
        outdated: of several, one that is to be replaced.
    """

    kind: Literal["attach"] = "attach"
    worker: Name
    integration: Name
    record: Body | None = None
    instance: int = Field(default=0, ge=0)
    beside: IntegrationRow | None = None
    outdated: bool = False


class Switch(Message):
    """The worker, attached beside and ready, serves from now on; what was there finishes."""

    kind: Literal["switch"] = "switch"
    worker: Name
    integration: Name


class Pins(Message):
    """To S1: what an integration was approved to offer; fd "pins" (JSON: key → hash), or none.

    No descriptor: nothing was ever approved.
    """

    kind: Literal["pins"] = "pins"
    integration: Name


class Detach(Message):
    """The worker is gone or is being stopped: fail what is in flight, with this reason."""

    kind: Literal["detach"] = "detach"
    worker: Name
    integration: Name
    reason: Text


class Known(Message):
    """What an integration offered when it last ran, fd ("surface",): S1's own earlier words."""

    kind: Literal["known"] = "known"
    integration: Name


class AvailabilityChanged(Message):
    """Why a call to the integration can or cannot be served now."""

    kind: Literal["availability"] = "availability"
    integration: Name
    state: Availability
    reason: Text = ""


class SnapshotIn(Message):
    """A compiled snapshot of another system, for S1 to enforce."""

    kind: Literal["snapshot"] = "snapshot"
    sender: Name
    body: Body


class Query(Message):
    """A question, answered by `answer` with the same id."""

    kind: Literal["query"] = "query"
    id: int = Field(ge=0)
    what: str = Field(max_length=64)
    about: str = Field(default="", max_length=128)


class Drain(Message):
    """Finish what is in flight to the integration, take nothing new, then report `idle`.

    Args:
        worker: this server of it alone, which another one has replaced.
    """

    kind: Literal["drain"] = "drain"
    integration: Name
    worker: Name | None = None


class Configure(Message):
    """The integrations as they are from now on: new ones, changed ones, without removed ones.

    `rules` and `policy` are as in `start`.
    """

    kind: Literal["configure"] = "configure"
    integrations: tuple[IntegrationRow, ...] = ()
    rules: str = Field(default="", max_length=64)
    policy: Body = Field(default_factory=dict)


class Segments(Message):
    """The demand board of S1, all its sealed memfds: fds "segment0", …; none where there is none.

    S1 announces its own with it. A new S1 is told its predecessor's, S4 the newest.

    Args:
        epoch: of the S1 that wrote them. pid: its own, 0 where it is not known.
        age_s: how long vsm has been counting.
    """

    kind: Literal["segments"] = "segments"
    epoch: int = Field(default=0, ge=0)
    pid: int = Field(default=0, ge=0)
    age_s: float = Field(default=0.0, ge=0)


class Told(Message):
    """To S1: the answer to `ask` with the same id; null where there is none."""

    kind: Literal["told"] = "told"
    id: int = Field(ge=0)
    body: Body | None = None


class ResourceRow(Row):
    """What one integration may use and does use; None where nothing measures or limits it.

    Args:
        floor, ceiling: between which the supervisor moves a limit; a resource that is in neither
            stays as it is. `limit` is what holds now. That of "instances" is how many a pool may
            have; of its use S1 tells.
        pressure: how often the limit was hit since the worker started.
        out_of_memory: how often that killed it since vsm started.
    """

    priority: int = Field(default=1, ge=1, le=100)
    floor: dict[str, float] = Field(default_factory=dict, max_length=8)
    ceiling: dict[str, float] = Field(default_factory=dict, max_length=8)
    limit: dict[str, float] = Field(default_factory=dict, max_length=8)
    usage: dict[str, float] = Field(default_factory=dict, max_length=8)
    pressure: dict[str, float] = Field(default_factory=dict, max_length=8)
    out_of_memory: int = Field(default=0, ge=0)


class Resources(Message):
    """To S3: a sample of every integration that runs. `at_s` is the supervisor's clock."""

    kind: Literal["resources"] = "resources"
    at_s: float = Field(ge=0)
    rows: dict[Name, ResourceRow] = Field(default_factory=dict)


class Moved(Message):
    """To S3: what became of `move` with the same id."""

    kind: Literal["moved"] = "moved"
    id: int = Field(ge=0)
    state: Literal["in force", "refused"]
    detail: Text = ""


class Happened(Message):
    """To S2: something that may go to and fro: a restart, a limit that moved.

    Args:
        series: what moved, such as "restart", "memory". change: in which direction, by sign.
    """

    kind: Literal["happened"] = "happened"
    integration: Name
    series: Name
    change: float
    at_s: float = Field(ge=0)


class Audited(Message):
    """To S3: what an audit of a running worker found: failed checks by name, with the reason.

    Args:
        checked: how much was compared or tried; `attacks` and `contract` are parts of it.
    """

    kind: Literal["audited"] = "audited"
    id: int = Field(ge=0)
    integration: Name
    checked: int = Field(ge=0)
    attacks: int = Field(default=0, ge=0)
    contract: int = Field(default=0, ge=0)
    failed: dict[str, Text] = Field(default_factory=dict, max_length=64)
    detail: Text = ""


class Contract(Message):
    """To S1: ask the servers of an integration whether they offer what they told."""

    kind: Literal["contract"] = "contract"
    id: int = Field(ge=0)
    integration: Name


class Bound(Message):
    """To S1: how many instances a pool may have from now on."""

    kind: Literal["bound"] = "bound"
    integration: Name
    most: int = Field(ge=1)


class Hurt(Message):
    """To S5: what the supervisor itself feels, such as a quarantine; recorded already.

    Args:
        sender: "system1" for relief of what one felt that is gone.
    """

    is_urgent: ClassVar[bool] = True

    kind: Literal["hurt"] = "hurt"
    sender: Literal["supervisor", "system1"] = "supervisor"
    severity: Literal["pain", "relief"]
    subject: str = Field(max_length=128)
    cause: str = Field(default="", max_length=64)
    detail: Text


class Verdict(Message):
    """To S1: a person, or the time-out, decided about the call of `asking` with the same id."""

    kind: Literal["verdict"] = "verdict"
    id: int = Field(ge=0)
    approved: bool
    reason: Text = ""


class Grants(Message):
    """To S1: everything that is granted now."""

    kind: Literal["grants"] = "grants"
    grants: tuple[Grant, ...] = Field(default=(), max_length=100)


class Stop(Message):
    """Stop: accept nothing, finish bounded, exit 0."""

    kind: Literal["stop"] = "stop"


ToSystem: TypeAlias = (
    Start
    | Attach
    | Switch
    | Pins
    | Detach
    | Known
    | AvailabilityChanged
    | SnapshotIn
    | Query
    | Drain
    | Configure
    | Segments
    | Told
    | Resources
    | Moved
    | Happened
    | Audited
    | Contract
    | Bound
    | Hurt
    | Verdict
    | Grants
    | Stop
)

# ---- system → supervisor -------------------------------------------------------------------


class LayerReport(Row):
    """One layer of a process's confinement, as it really came out."""

    name: str = Field(max_length=64)
    state: Literal["in force", "absent", "not required"]
    detail: str = Field(default="", max_length=1024)


class Ready(Message):
    """The system serves; the one fd is its heartbeat board ("board")."""

    kind: Literal["ready"] = "ready"
    layers: tuple[LayerReport, ...] = Field(default=(), max_length=32)


class Session(Message):
    """S1: the worker's session stands. `record` is what a successor needs to resume it."""

    kind: Literal["session"] = "session"
    worker: Name
    record: Annotated[Body, AfterValidator(_small)]


class Unfit(Message):
    """S1: the worker did not become ready or broke the protocol: stop and restart it."""

    kind: Literal["unfit"] = "unfit"
    worker: Name
    reason: Text


class Offered(Message):
    """S1: a server offers what is not pinned; fd "items" (JSON: key → item)."""

    kind: Literal["offered"] = "offered"
    integration: Name


class Wanted(Message):
    """S1: how many instances an integration should have, and which are of no use any more.

    Said again as long as one of those runs.
    """

    kind: Literal["wanted"] = "wanted"
    integration: Name
    count: int = Field(ge=0, le=1024)
    release: dict[Name, Text] = Field(default_factory=dict, max_length=256)  # worker → why


class Learnt(Message):
    """S1: what an integration offers, fd ("surface",): kept for when it does not run."""

    kind: Literal["learnt"] = "learnt"
    integration: Name


class Idle(Message):
    """S1: the integration is drained, or one server of it that was replaced."""

    kind: Literal["idle"] = "idle"
    integration: Name
    worker: Name | None = None


class SnapshotOut(Message):
    """S2, S3, S5: a compiled snapshot for S1; the sender is the control link's owner."""

    kind: Literal["snapshot"] = "snapshot"
    body: Body


class Answer(Message):
    """The answer to `query`."""

    kind: Literal["answer"] = "answer"
    id: int = Field(ge=0)
    body: Body


class Ask(Message):
    """S1: a model asks vsm about itself; `about` is what it wants to hear of."""

    kind: Literal["ask"] = "ask"
    id: int = Field(ge=0)
    what: Literal[
        "status",
        "variety",
        "capabilities",
        "limitations",
        "explain_decision",
        "reflect",
        "predictions",
        "events",
    ]
    about: str = Field(default="", max_length=128)


class Asking(Message):
    """S1: a rule says that a person must approve this call, which is held meanwhile.

    Args:
        rule, rule_digest: the rule's name, and which rule it is.
        client: who asks, by the transport's word. calls_itself: by its own.
        asks: tool, prompt, resource or other. name: which.
        size_bytes, digest: of the arguments; `shape` is their members' kinds.
        arguments: their text where the configuration says so, else empty.
    """

    kind: Literal["asking"] = "asking"
    id: int = Field(ge=0)
    rule: str = Field(max_length=64)
    rule_digest: str = Field(max_length=64)
    client: str = Field(max_length=64)
    calls_itself: str = Field(default="", max_length=128)
    integration: Name
    asks: str = Field(max_length=16)
    name: str = Field(max_length=512)
    size_bytes: int = Field(ge=0)
    digest: str = Field(max_length=64)
    shape: dict[str, str] = Field(default_factory=dict, max_length=16)
    arguments: Text = ""
    timeout_s: float = Field(gt=0)


class Withdrawn(Message):
    """S1: the client of `asking` with this id no longer waits."""

    kind: Literal["withdrawn"] = "withdrawn"
    id: int = Field(ge=0)


class Spent(Message):
    """S1: how many calls each rule with a budget let pass lately, for a successor."""

    kind: Literal["spent"] = "spent"
    calls: dict[str, int] = Field(default_factory=dict, max_length=256)


class Felt(Message):
    """S5: a signal of `sender` for the operator; `repeats` were like it and held back."""

    is_urgent: ClassVar[bool] = True

    kind: Literal["felt"] = "felt"
    sender: Literal["system1", "system2", "system3", "system4"]
    severity: Literal["pain", "relief"]
    subject: str = Field(max_length=128)
    cause: str = Field(default="", max_length=64)
    detail: Text
    repeats: int = Field(default=0, ge=0)


class Noted(Message):
    """S2 to S5: something worth a line in the journal and, from warning on, in the log."""

    kind: Literal["noted"] = "noted"
    event: str = Field(max_length=64, pattern=r"^[a-z][a-z0-9_.]*$")
    severity: Literal["info", "notice", "warning", "error", "critical"] = "info"
    integration: Name | None = None
    detail: Body = Field(default_factory=dict)


class Decided(Message):
    """A decision for the journal. `key` is the system's own name for it."""

    kind: Literal["decided"] = "decided"
    key: str = Field(max_length=64)
    subject: str = Field(max_length=128)
    rule: str = Field(max_length=64)
    inputs: Body = Field(default_factory=dict)
    alternatives: tuple[str, ...] = Field(default=(), max_length=16)
    choice: str = Field(max_length=256)


class Settled(Message):
    """What came of the decision with that key."""

    kind: Literal["settled"] = "settled"
    key: str = Field(max_length=64)
    outcome: Body


class Move(Message):
    """S3: put these limits in force for an integration; the supervisor judges them first."""

    kind: Literal["move"] = "move"
    id: int = Field(ge=0)
    integration: Name
    limits: dict[str, float] = Field(max_length=8)


class Audit(Message):
    """S3: compare a running worker with its plan, attack it from within, call its contract."""

    kind: Literal["audit"] = "audit"
    id: int = Field(ge=0)
    integration: Name


class Contracted(Message):
    """S1: what became of `contract` with the same id: item → what is wrong with it."""

    kind: Literal["contracted"] = "contracted"
    id: int = Field(ge=0)
    checked: int = Field(ge=0)
    failed: dict[str, Text] = Field(default_factory=dict, max_length=64)
    unknown: tuple[Text, ...] = Field(default=(), max_length=64)


class Damp(Message):
    """S2: an integration restarts again and again: start it more slowly; factor 1 ends that."""

    kind: Literal["damp"] = "damp"
    integration: Name
    factor: float = Field(ge=1, le=1000)


Regulation: TypeAlias = Noted | Decided | Settled | Move | Audit | Contracted | Damp
Policed: TypeAlias = Asking | Withdrawn | Spent | Felt
FromSystem: TypeAlias = (
    Ready
    | Session
    | Unfit
    | Wanted
    | Learnt
    | Idle
    | Offered
    | SnapshotOut
    | Answer
    | Segments
    | Ask
    | Policed
    | Regulation
)

# ---- supervisor ↔ template -----------------------------------------------------------------


class Fork(Message):
    """Make a system: fds "control", "stderr" and one for each of its channel ends."""

    kind: Literal["fork"] = "fork"
    system: Name
    epoch: int = Field(ge=1)
    plan: str = Field(max_length=120_000)  # JSON of the compiled plan


class Ping(Message):
    """Does the template still answer?"""

    kind: Literal["ping"] = "ping"


class Pong(Message):
    """It does."""

    kind: Literal["pong"] = "pong"


class TemplateReady(Message):
    """The template has imported everything and can fork."""

    kind: Literal["template_ready"] = "template_ready"
    imported_s: float


class Forked(Message):
    """The system exists; the one fd is its pidfd ("pidfd")."""

    kind: Literal["forked"] = "forked"
    system: Name
    epoch: int
    pid: int = Field(gt=1)


class Exited(Message):
    """The system is gone and reaped: an exit status, or minus the signal's number."""

    kind: Literal["exited"] = "exited"
    system: Name
    epoch: int
    status: int


ToTemplate: TypeAlias = Fork | Ping
FromTemplate: TypeAlias = TemplateReady | Pong | Forked | Exited

# ---- channels ------------------------------------------------------------------------------


class Summary(Message):
    """S1 → S2, S3: load and outcomes since the last summary, by integration."""

    kind: Literal["summary"] = "summary"
    interval_s: float = Field(ge=0)
    integrations: dict[Name, dict[str, Amount]] = Field(default_factory=dict)


class Rates(Message):
    """S2 → S3: the rates that coordination grants."""

    kind: Literal["rates"] = "rates"
    body: Body


class Budgets(Message):
    """S3 → S2, S4: what the resource bargain gives."""

    kind: Literal["budgets"] = "budgets"
    body: Body


class Outlook(Message):
    """S4 → S3: outside-and-then against inside-and-now."""

    kind: Literal["outlook"] = "outlook"
    body: Body


class Proposal(Message):
    """S3, S4 → S5: something that policy must decide; the answer is a `Policy` on its subject.

    Args:
        id: the sender's own number. subject: an integration or a demand class.
        change: what is to change, such as "memory", "ceiling", "serve".
        from_value, to_value: null where it is no number.
        expected_gain_bits: absorbed variety that it would bring. cost: in the change's own unit.
    """

    kind: Literal["proposal"] = "proposal"
    id: int = Field(ge=0)
    sender: Literal["system3", "system4"]
    subject: str = Field(max_length=128)
    change: str = Field(max_length=64)
    from_value: float | None = None
    to_value: float | None = None
    evidence: Body = Field(default_factory=dict)
    expected_gain_bits: float = 0.0
    cost: float = 0.0
    outcome: Body | None = None  # what came of the earlier proposal with this id; asks nothing


class Policy(Message):
    """S5 → S3, S4: what became of a proposal. S2 hears what was approved.

    Args:
        id: S5's own number of the decision.
        sender, proposal: whose proposal it was, and its id.
        verdict: "revoked" takes an earlier "approved" back: a better proposal stands against it.
        alternatives: what was weighed against it. reasons: why, one sentence each.
    """

    kind: Literal["policy"] = "policy"
    id: int = Field(ge=0)
    sender: Literal["system3", "system4"]
    proposal: int = Field(ge=0)
    subject: str = Field(max_length=128)
    change: str = Field(max_length=64)
    to_value: float | None = None
    verdict: Literal["approved", "refused", "revoked"]
    rule: str = Field(max_length=64)
    alternatives: tuple[Text, ...] = Field(default=(), max_length=16)
    reasons: tuple[Text, ...] = Field(default=(), max_length=16)


class Algedonic(Message):
    """Pain (or relief) that bypasses every filter on its way to S5.

    Args:
        cause: one word or two, such as "breaker open"; signals are limited in rate by subject and
            cause, and relief ends the pain of its subject and cause.
    """

    is_urgent: ClassVar[bool] = True

    kind: Literal["algedonic"] = "algedonic"
    severity: Literal["pain", "relief"]
    subject: str = Field(max_length=128)
    cause: str = Field(default="", max_length=64)
    detail: Text


ChannelMessage: TypeAlias = Summary | Rates | Budgets | Outlook | Proposal | Policy | Algedonic


def _parser(kinds: Any) -> Callable[[bytes], Any]:  # noqa: ANN401 - a union is no type to mypy
    return TypeAdapter(kinds).validate_json


_BY_KIND = Field(discriminator="kind")

parse_to_system: Callable[[bytes], ToSystem] = _parser(Annotated[ToSystem, _BY_KIND])
parse_from_system: Callable[[bytes], FromSystem] = _parser(Annotated[FromSystem, _BY_KIND])


def reports_of(system: str) -> Callable[[bytes], FromSystem]:
    """The parser of what one system sends to the supervisor: what it may not say is invalid."""

    def parse(payload: bytes) -> FromSystem:
        message = parse_from_system(payload)
        if system not in REPORTS[message.kind]:
            raise ValueError(f"{system} may not send {message.kind!r}")
        if isinstance(message, Noted) and not message.event.startswith(NOTES[system]):
            raise ValueError(f"{system} may not note {message.event!r}")
        if isinstance(message, Decided) and not message.rule.startswith(RULES[system]):
            raise ValueError(f"{system} may not decide by {message.rule!r}")
        return message

    return parse


parse_to_template: Callable[[bytes], ToTemplate] = _parser(Annotated[ToTemplate, _BY_KIND])
parse_from_template: Callable[[bytes], FromTemplate] = _parser(Annotated[FromTemplate, _BY_KIND])

# A channel carries one kind only: anything else that arrives on it is invalid.
CHANNEL_PARSERS: dict[str, Callable[[bytes], ChannelMessage]] = {
    "summary": _parser(Summary),
    "rates": _parser(Rates),
    "budgets": _parser(Budgets),
    "outlook": _parser(Outlook),
    "proposal": _parser(Proposal),
    "policy": _parser(Policy),
    "algedonic": _parser(Algedonic),
}
