"""Property-based tests: whatever is sent, the answer is a client's error or right, and the server lives."""

import json

import grpc
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tests.serving import toy_models
from tf_dpdiff.serving import json_tensors
from tf_dpdiff.serving import signatures
from tf_dpdiff.serving import status

VERSION = 3  # Of the model that is served.
_SETTINGS = hypothesis.settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
_SIGNATURES = ('serving_default', 'echo', 'half', 'scalar')


@pytest.fixture(name='server', scope='module')
def fixture_server(folder):
    with toy_models.serving(folder, limits=toy_models.quick_limits(batch_timeout_secs=0.0)) as server:
        yield server


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 9),
    st.floats(),
    st.text(max_size=5),
    st.text(st.characters(), max_size=3),
    st.builds(lambda text: {'b64': text}, st.text('QUJ=*', max_size=6)),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(['labels', 'seeds', 'x', 'b64']), inner, max_size=3),
    ),
    max_leaves=8,
)
_NEARLY_RIGHT = st.one_of(
    st.builds(
        lambda labels, seeds: {'inputs': {'labels': labels, 'seeds': seeds}},
        st.lists(st.integers(-2, 9), max_size=3),
        st.lists(st.integers(-(2**65), 2**65), max_size=3),
    ),
    st.builds(lambda rows: {'signature_name': 'echo', 'instances': rows}, st.lists(_LEAVES, min_size=1, max_size=3)),
    st.builds(
        lambda rows: {'signature_name': 'half', 'instances': rows},
        st.lists(st.lists(st.floats() | st.integers(), min_size=1, max_size=3), min_size=1, max_size=3),
    ),
    st.builds(lambda x: {'signature_name': 'scalar', 'inputs': x}, st.floats()),
)
_DOCUMENTS = st.one_of(
    _NEARLY_RIGHT,
    _VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            'signature_name': st.one_of(_LEAVES, st.sampled_from(_SIGNATURES)),
            'instances': _VALUES,
            'inputs': _VALUES,
        },
    ),
)


def seen(answers):
    """Both kinds of answers must have come, or nothing was tested."""
    assert {code for code in answers if code != 200} and 200 in answers, answers


def test_no_json_makes_the_server_fail(server):
    answers = set()

    @_SETTINGS
    @hypothesis.given(_DOCUMENTS)
    def check(document):
        code, answer = toy_models.post(server, document)
        assert code in (200, 400, 501) and (code == 200) == ('error' not in answer), (document, answer)
        answers.add(code)

    check()
    seen(answers)


def test_no_bytes_make_the_server_fail(server):
    whole = json.dumps({'inputs': {'labels': [1], 'seeds': [2]}}).encode()

    @_SETTINGS
    @hypothesis.given(
        st.one_of(
            st.binary(max_size=100),
            st.builds(
                lambda at, with_: whole[:at] + with_ + whole[at + 1 :],
                st.integers(0, len(whole)),
                st.binary(max_size=2),
            ),
        )
    )
    def check(body):
        code, answer = toy_models.post(server, body)
        assert code in (200, 400) and (code == 200) == ('error' not in answer), (body, answer)

    check()


@st.composite
def _tensors(draw):
    """Messages that are tensors, nearly tensors, or none."""
    dtype = draw(st.one_of(st.sampled_from([1, 3, 7, 9]), st.integers(0, 130)))
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in draw(st.lists(st.one_of(st.integers(0, 3), st.sampled_from([-1, 2**31, 2**62])), max_size=3)):
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
    proto.int_val.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
    proto.int64_val.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)))
    proto.float_val.extend(draw(st.lists(st.floats(width=32), max_size=3)))
    proto.string_val.extend(draw(st.lists(st.binary(max_size=4), max_size=3)))
    proto.tensor_content = draw(st.one_of(st.just(b''), st.binary(max_size=24)))
    return proto


def _arrays(values, dtype):
    return st.lists(values, max_size=3).map(lambda items: tf.make_tensor_proto(np.array(items, dtype)))


_INPUTS = st.one_of(
    st.fixed_dictionaries(
        {'labels': _arrays(st.integers(-1, 9), np.int32), 'seeds': _arrays(st.integers(-(2**63), 2**63 - 1), np.int64)}
    ),
    st.dictionaries(st.sampled_from(['labels', 'seeds', 'x', 'text']), _tensors(), max_size=3),
    st.fixed_dictionaries({'labels': _tensors(), 'seeds': _tensors()}),
)


def test_no_message_makes_the_server_fail(server):
    predict, _ = toy_models.stubs(server)
    answers = set()

    @_SETTINGS
    @hypothesis.given(
        st.one_of(st.just('serving_default'), st.sampled_from(_SIGNATURES), st.text(max_size=3)),
        _INPUTS,
        st.lists(st.sampled_from(['images', 'y', '']), max_size=2),
    )
    def check(signature, inputs, output_filter):
        request = toy_models.predict_request(signature.encode('utf-8', 'replace').decode(), **inputs)
        request.output_filter.extend(output_filter)
        try:
            predict.Predict(request, 20)
            answers.add(200)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION), error
            answers.add(error.code())

    check()
    seen(answers)


_DTYPES = {
    'int32': st.integers(-(2**31), 2**31 - 1),
    'int64': st.integers(-(2**63), 2**63 - 1),
    'uint8': st.integers(0, 255),
    'float32': st.floats(width=32),
    'float64': st.floats(),
    'float16': st.floats(width=16),
    'bool': st.booleans(),
    'string': st.binary(max_size=6),
}


@pytest.mark.parametrize('name', _DTYPES)
@pytest.mark.parametrize('in_rows', [True, False])
def test_tensors_survive_json(name, in_rows):
    dtype = tf.as_dtype(name)
    spec = signatures.TensorSpec(dtype, (None, None))
    signature = signatures.Signature('s', {'x_bytes': spec}, {'x_bytes': spec}, None)

    @_SETTINGS
    @hypothesis.given(
        st.integers(1, 3).flatmap(
            lambda n: st.lists(st.lists(_DTYPES[name], min_size=n, max_size=n), min_size=1, max_size=3)
        )
    )
    def check(values):
        array = np.array(values, dtype.as_numpy_dtype)
        document = json.loads(json_tensors.write_outputs({'x_bytes': array}, in_rows))
        given = {'instances': document['predictions']} if in_rows else {'inputs': document['outputs']}
        body = json.dumps(given).encode()
        inputs, were_rows = json_tensors.read_inputs(json_tensors.parse(body), signature, 9, 2**20)
        assert were_rows == in_rows
        np.testing.assert_array_equal(inputs['x_bytes'], array)  # NaN among them.

    check()


@pytest.mark.parametrize('name', ['float16', 'bfloat16', 'float32', 'float64'])
def test_largest_number_survives_json_and_a_larger_one_is_refused(name):
    dtype = tf.as_dtype(name)
    spec = signatures.TensorSpec(dtype, (None,))
    signature = signatures.Signature('s', {'x': spec}, {'x': spec}, None)
    largest = np.array([dtype.max, dtype.min], dtype.as_numpy_dtype)
    document = json.loads(json_tensors.write_outputs({'x': largest}, False))
    inputs, _ = json_tensors.read_inputs({'inputs': document['outputs']}, signature, 9, 2**20)
    np.testing.assert_array_equal(inputs['x'], largest)
    if name != 'float64':
        with pytest.raises(status.ServingError, match='without loss of precision'):
            json_tensors.read_inputs({'inputs': [1.01 * float(dtype.max)]}, signature, 9, 2**20)


def test_a_type_that_json_cannot_hold_is_told():
    spec = signatures.TensorSpec(tf.complex64, (None,))
    signature = signatures.Signature('s', {'x': spec}, {'x': spec}, None)
    with pytest.raises(status.ServingError) as error:
        json_tensors.read_inputs({'inputs': [1]}, signature, 9, 2**20)
    assert error.value.http_status == 501
