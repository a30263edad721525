from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ALLOW: _ClassVar[Action]
    ACTION_OBSERVE: _ClassVar[Action]
    ACTION_PERTURB: _ClassVar[Action]
    ACTION_THROTTLE: _ClassVar[Action]
    ACTION_BAN: _ClassVar[Action]
ACTION_UNSPECIFIED: Action
ACTION_ALLOW: Action
ACTION_OBSERVE: Action
ACTION_PERTURB: Action
ACTION_THROTTLE: Action
ACTION_BAN: Action

class Tensor(_message.Message):
    __slots__ = ("datatype", "shape", "data")
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class QueryBatch(_message.Message):
    __slots__ = ("schema_version", "batch_id", "model_name", "model_version", "query_ids", "accounts", "request_ids", "accepted_at_us", "inputs", "logits", "answers", "actions", "perturbed")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    PERTURBED_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    batch_id: bytes
    model_name: str
    model_version: str
    query_ids: _containers.RepeatedScalarFieldContainer[str]
    accounts: _containers.RepeatedScalarFieldContainer[str]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    accepted_at_us: _containers.RepeatedScalarFieldContainer[int]
    inputs: Tensor
    logits: Tensor
    answers: Tensor
    actions: _containers.RepeatedScalarFieldContainer[Action]
    perturbed: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, schema_version: _Optional[int] = ..., batch_id: _Optional[bytes] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., query_ids: _Optional[_Iterable[str]] = ..., accounts: _Optional[_Iterable[str]] = ..., request_ids: _Optional[_Iterable[str]] = ..., accepted_at_us: _Optional[_Iterable[int]] = ..., inputs: _Optional[_Union[Tensor, _Mapping]] = ..., logits: _Optional[_Union[Tensor, _Mapping]] = ..., answers: _Optional[_Union[Tensor, _Mapping]] = ..., actions: _Optional[_Iterable[_Union[Action, str]]] = ..., perturbed: _Optional[_Iterable[bool]] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("account", "queries", "repeats", "statistic", "threshold", "flagged", "details", "log_evidence", "accepted_at_us", "query_id")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    LOG_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    account: str
    queries: int
    repeats: int
    statistic: float
    threshold: float
    flagged: bool
    details: _containers.ScalarMap[str, float]
    log_evidence: _containers.RepeatedScalarFieldContainer[float]
    accepted_at_us: int
    query_id: str
    def __init__(self, account: _Optional[str] = ..., queries: _Optional[int] = ..., repeats: _Optional[int] = ..., statistic: _Optional[float] = ..., threshold: _Optional[float] = ..., flagged: _Optional[bool] = ..., details: _Optional[_Mapping[str, float]] = ..., log_evidence: _Optional[_Iterable[float]] = ..., accepted_at_us: _Optional[int] = ..., query_id: _Optional[str] = ...) -> None: ...

class SignalBatch(_message.Message):
    __slots__ = ("schema_version", "detector", "model_name", "model_version", "batch_id", "source_partition", "source_offset", "signals")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    DETECTOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_PARTITION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    detector: str
    model_name: str
    model_version: str
    batch_id: bytes
    source_partition: int
    source_offset: int
    signals: _containers.RepeatedCompositeFieldContainer[Signal]
    def __init__(self, schema_version: _Optional[int] = ..., detector: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., batch_id: _Optional[bytes] = ..., source_partition: _Optional[int] = ..., source_offset: _Optional[int] = ..., signals: _Optional[_Iterable[_Union[Signal, _Mapping]]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("schema_version", "verdict_id", "account", "model_name", "action", "rule", "reason", "log_evidence", "issued_at_us", "expires_at_us", "cause_query_id", "cause_accepted_at_us", "response", "queries_per_second", "at_query")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOG_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    CAUSE_QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_ACCEPTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    QUERIES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    AT_QUERY_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    verdict_id: str
    account: str
    model_name: str
    action: Action
    rule: str
    reason: str
    log_evidence: float
    issued_at_us: int
    expires_at_us: int
    cause_query_id: str
    cause_accepted_at_us: int
    response: str
    queries_per_second: float
    at_query: int
    def __init__(self, schema_version: _Optional[int] = ..., verdict_id: _Optional[str] = ..., account: _Optional[str] = ..., model_name: _Optional[str] = ..., action: _Optional[_Union[Action, str]] = ..., rule: _Optional[str] = ..., reason: _Optional[str] = ..., log_evidence: _Optional[float] = ..., issued_at_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ..., cause_query_id: _Optional[str] = ..., cause_accepted_at_us: _Optional[int] = ..., response: _Optional[str] = ..., queries_per_second: _Optional[float] = ..., at_query: _Optional[int] = ...) -> None: ...

class Override(_message.Message):
    __slots__ = ("schema_version", "override_id", "account", "model_name", "kind", "action", "author", "reason", "issued_at_us", "expires_at_us")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Override.Kind]
        KIND_PARDON: _ClassVar[Override.Kind]
        KIND_PIN: _ClassVar[Override.Kind]
        KIND_CLEAR: _ClassVar[Override.Kind]
    KIND_UNSPECIFIED: Override.Kind
    KIND_PARDON: Override.Kind
    KIND_PIN: Override.Kind
    KIND_CLEAR: Override.Kind
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_US_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    override_id: str
    account: str
    model_name: str
    kind: Override.Kind
    action: Action
    author: str
    reason: str
    issued_at_us: int
    expires_at_us: int
    def __init__(self, schema_version: _Optional[int] = ..., override_id: _Optional[str] = ..., account: _Optional[str] = ..., model_name: _Optional[str] = ..., kind: _Optional[_Union[Override.Kind, str]] = ..., action: _Optional[_Union[Action, str]] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., issued_at_us: _Optional[int] = ..., expires_at_us: _Optional[int] = ...) -> None: ...

class PerturbedAnswer(_message.Message):
    __slots__ = ("schema_version", "query_id", "account", "model_name", "model_version", "answered_at_us", "response", "perceptual_hash", "hash_kind", "similar_bits", "input", "logits", "answer")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_AT_US_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PERCEPTUAL_HASH_FIELD_NUMBER: _ClassVar[int]
    HASH_KIND_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_BITS_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    query_id: str
    account: str
    model_name: str
    model_version: str
    answered_at_us: int
    response: str
    perceptual_hash: bytes
    hash_kind: str
    similar_bits: int
    input: Tensor
    logits: Tensor
    answer: Tensor
    def __init__(self, schema_version: _Optional[int] = ..., query_id: _Optional[str] = ..., account: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., answered_at_us: _Optional[int] = ..., response: _Optional[str] = ..., perceptual_hash: _Optional[bytes] = ..., hash_kind: _Optional[str] = ..., similar_bits: _Optional[int] = ..., input: _Optional[_Union[Tensor, _Mapping]] = ..., logits: _Optional[_Union[Tensor, _Mapping]] = ..., answer: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ResponseNote(_message.Message):
    __slots__ = ("schema_version", "account", "model_name", "model_version", "response", "noted_at_us", "note")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    NOTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    account: str
    model_name: str
    model_version: str
    response: str
    noted_at_us: int
    note: bytes
    def __init__(self, schema_version: _Optional[int] = ..., account: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., response: _Optional[str] = ..., noted_at_us: _Optional[int] = ..., note: _Optional[bytes] = ...) -> None: ...
