"""The plain executor against transformers, tokens and logits; its layers and its sampling by themselves."""
# ruff: noqa: E402 - the rest imports torch, without which this file is skipped

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

REASON = "torch and transformers are needed to run models"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

from executor import layers
from executor.checkpoint import Checkpoint
from executor.reference import LoadedModel, generate, load
from executor.rotary import frequencies
from executor.sampling import Request, Sampling, choose, uniform
from simulator.errors import InputError
from tests.checkpoints import VARIANTS, build, change_json, greedy, next_logits, one_thread, reload, save

#: Largest difference from transformers' logits, as a share of the largest logit.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 2e-2}
PROMPTS = ((11, 7, 3, 90, 4), (96,), tuple(range(20, 32)), (5, 5, 5, 6, 1, 0, 2, 2))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint]:
    """Give each variant of transformers' model with its checkpoint."""
    model = build(VARIANTS[request.param])
    return model, save(model, tmp_path_factory.mktemp("checkpoints") / request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Give one small model, loaded."""
    return load(save(build(VARIANTS["llama"]), tmp_path_factory.mktemp("llama")))


def requests(count: int = 10, **chosen: Any) -> list[Request]:
    """Ask for the same number of tokens after each prompt."""
    return [Request(prompt, count, **chosen) for prompt in PROMPTS]


def worst(model: Any, prompts: Sequence[tuple[int, ...]], results: Sequence[Any]) -> float:
    """Give the largest difference from transformers' logits for the same tokens, over the largest logit."""
    errors, largest = [], 0.0
    for prompt, result in zip(prompts, results, strict=True):
        expected = next_logits(model, prompt + result.tokens)[len(prompt) - 1 : -1]
        errors.append(float((expected - result.logits).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return max(errors) / largest


def test_greedy_tokens_are_those_of_transformers(case: tuple[Any, Checkpoint]) -> None:
    """A batch of prompts of distinct lengths gives, in float32, what transformers gives one by one."""
    model, checkpoint = case
    results = generate(checkpoint, requests(), logits=True)
    assert [result.tokens for result in results] == [greedy(model, prompt, 10) for prompt in PROMPTS]
    assert {result.finish for result in results} == {"length"}
    assert worst(model, PROMPTS, results) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_close(case: tuple[Any, Checkpoint], dtype: Any) -> None:
    """With 16-bit numbers logits are those of transformers up to rounding."""
    _, checkpoint = case
    results = generate(checkpoint, requests(), dtype, logits=True)
    assert results[0].logits.dtype == torch.float32
    assert worst(reload(checkpoint, dtype), PROMPTS, results) < TOLERANCE[dtype]


def test_weights_saved_in_half_precision(tmp_path: Path) -> None:
    """A bfloat16 checkpoint, run in float32, gives what its rounded weights give."""
    checkpoint = save(build(VARIANTS["qwen2"]).to(torch.bfloat16), tmp_path)
    assert {place.dtype for place in checkpoint.tensors.values()} == {torch.bfloat16}
    results = generate(checkpoint, requests(), logits=True)
    assert worst(reload(checkpoint, torch.float32), PROMPTS, results) < TOLERANCE[torch.float32]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a configuration: a variant with other dimensions."""
    changes = dict(VARIANTS[draw(st.sampled_from(list(VARIANTS)))])
    key_heads, groups = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 3))
    heads, width = key_heads * groups, draw(st.sampled_from([6, 8]))
    changes |= {
        "num_attention_heads": heads,
        "hidden_size": heads * width,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(2, 300)),
    }
    if changes["model_type"] != "opt":
        changes["num_key_value_heads"] = key_heads
    if "head_dim" in changes:
        changes["head_dim"] = 2 * draw(st.integers(1, 8))
    return changes


@settings(max_examples=40)
@given(shapes(), st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 8), st.integers(0, 99))
def test_any_shape_and_any_prompts(
    tmp_path_factory: pytest.TempPathFactory,
    changes: dict[str, Any],
    lengths: list[int],
    count: int,
    seed: int,
) -> None:
    """For drawn dimensions and prompts, logits are those of transformers and tokens follow from them."""
    model = build(changes, seed)
    numbers = torch.Generator().manual_seed(seed)
    prompts = [
        tuple(torch.randint(changes["vocab_size"], (length,), generator=numbers).tolist())
        for length in lengths
    ]
    checkpoint = save(model, tmp_path_factory.mktemp("drawn"))
    results = generate(checkpoint, [Request(prompt, count) for prompt in prompts], logits=True)
    assert worst(model, prompts, results) < 10 * TOLERANCE[torch.float32]
    for result in results:
        assert list(result.tokens) == result.logits.argmax(-1).tolist()
        assert len(result.tokens) == count


def test_a_ragged_batch_gives_what_each_request_gives_alone(case: tuple[Any, Checkpoint]) -> None:
    """Neither padding nor neighbours change an answer, greedy or sampled, or of another length."""
    _, checkpoint = case
    model = load(checkpoint)
    mixed = [
        Request(prompt, count, Sampling(temperature, top_k=30, top_p=0.95, seed=count))
        for prompt, count, temperature in zip(PROMPTS, (3, 12, 1, 7), (0.0, 1.0, 0.8, 1.3), strict=True)
    ]
    together = generate(model, mixed, logits=True)
    for request, result in zip(mixed, together, strict=True):
        (alone,) = generate(model, [request], logits=True)
        assert (result.tokens, result.finish) == (alone.tokens, alone.finish)
        assert len(result.tokens) == request.max_new_tokens
        torch.testing.assert_close(result.logits, alone.logits, rtol=0, atol=2e-5)


def test_prompts_in_pieces(case: tuple[Any, Checkpoint]) -> None:
    """A block that sees a sequence in pieces computes what it computes for the whole."""
    _, checkpoint = case
    facts, model = checkpoint.config, load(checkpoint)
    hidden = torch.randn(2, 9, facts.model.hidden_size, generator=torch.Generator().manual_seed(0))
    at = torch.arange(9).expand(2, 9)
    q, k, v = layers.project_qkv(facts, hidden, at, model.blocks[0])
    whole = layers.attend(q, k, v)
    for start, stop in ((0, 4), (4, 8), (8, 9)):
        piece = hidden[:, start:stop]
        new = layers.project_qkv(facts, piece, at[:, start:stop], model.blocks[0])
        for mine, full in zip(new, (q, k, v), strict=True):
            torch.testing.assert_close(mine, full[:, start:stop])
        expected = whole[:, start:stop]
        torch.testing.assert_close(layers.attend(new[0], k[:, :stop], v[:, :stop]), expected)
        torch.testing.assert_close(layers.attend(new[0], k, v, at[:, start:stop]), expected)
        out = layers.project_out(facts, expected, piece, model.blocks[0])
        torch.testing.assert_close(
            layers.mlp(facts, out, model.blocks[0]),
            layers.mlp(facts, layers.project_out(facts, whole, hidden, model.blocks[0]), model.blocks[0])[
                :, start:stop
            ],
        )


@given(st.data())
def test_attention_is_its_definition(data: st.DataObject) -> None:
    """Attention over ragged lengths is a softmax of scaled products with a sequence's own past."""
    batch, new, room = (data.draw(st.integers(1, 3)) for _ in range(3))
    keys, groups, width = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    cached = data.draw(st.lists(st.integers(0, 6), min_size=batch, max_size=batch))
    slots = max(cached) + new + room
    numbers = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q = torch.randn(batch, new, keys * groups, width, generator=numbers)
    k, v = torch.randn(2, batch, slots, keys, width, generator=numbers)
    positions = torch.tensor(cached)[:, None] + torch.arange(new)
    found = layers.attend(q, k, v, positions)
    assert found.shape == q.shape
    for b, t, h in itertools.product(range(batch), range(new), range(keys * groups)):
        seen = int(positions[b, t]) + 1
        products = k[b, :seen, h // groups] @ q[b, t, h] / math.sqrt(width)
        torch.testing.assert_close(found[b, t, h], products.softmax(0) @ v[b, :seen, h // groups])


ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": st.floats(1, 16)}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": st.floats(1, 16)}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.floats(1, 32),
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(3, 8),
            "original_max_position_embeddings": st.integers(64, 8192),
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": st.floats(1, 32),
            "original_max_position_embeddings": st.integers(64, 8192),
        },
        optional={
            "beta_fast": st.floats(16, 40),
            "beta_slow": st.floats(0.5, 2),
            "mscale": st.floats(0.5, 2),
            "mscale_all_dim": st.floats(0.5, 2),
            "attention_factor": st.floats(0.5, 2),
            "truncate": st.booleans(),
        },
    ),
)


@settings(max_examples=40)
@given(ROPES, st.sampled_from([100.0, 1e4, 5e5, 1e6]), st.booleans())
@example({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 5e5, True)
def test_rotary_frequencies_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, rope: dict[str, Any], theta: float, older: bool
) -> None:
    """They are equal to the last bit, from files of the present form and of the former one."""
    changes = VARIANTS["llama"] | {"head_dim": 64, "num_hidden_layers": 1, "max_position_embeddings": 8192}
    model = build(changes | {"rope_scaling": dict(rope), "rope_theta": theta})
    folder = tmp_path_factory.mktemp("rope")
    save(model, folder)
    written = (
        {"rope_parameters": ..., "rope_theta": theta, "rope_scaling": rope}
        if older
        else {"rope_parameters": rope | {"rope_theta": theta}, "rope_theta": 123.0, "rope_scaling": None}
    )
    change_json(folder / "config.json", **written)
    checkpoint = Checkpoint.open(folder)
    theirs = model.model.rotary_emb
    assert checkpoint.config.rotary is not None
    assert torch.equal(frequencies(checkpoint.config.rotary), theirs.inv_freq)
    assert checkpoint.config.rotary.scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_stop_tokens_end_an_answer(llama: LoadedModel) -> None:
    """Generation stops after the first stop token, of the request or else of the checkpoint."""
    (free,) = generate(llama, [Request(PROMPTS[0], 12)])
    stop = free.tokens[4]
    first = free.tokens.index(stop)
    (short,) = generate(llama, [Request(PROMPTS[0], 12, stop=frozenset({stop}))])
    assert (short.tokens, short.finish) == (free.tokens[: first + 1], "stop")
    named = LoadedModel(
        facts=type(llama.facts)(**{**vars(llama.facts), "end_tokens": frozenset({stop})}),
        embed=llama.embed,
        blocks=llama.blocks,
        head=llama.head,
    )
    both = [Request(PROMPTS[0], 12), Request(PROMPTS[0], 12, stop=frozenset())]
    assert [result.tokens for result in generate(named, both)] == [short.tokens, free.tokens]


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    """Up to the window all of the context is attended to; more than that is refused."""
    model = build(VARIANTS["mistral-window"])
    checkpoint = save(model, tmp_path)
    prompt = tuple(range(30))
    (result,) = generate(checkpoint, [Request(prompt, 3)])
    assert result.tokens == greedy(model, prompt, 3)
    with pytest.raises(
        InputError, match=r"request 0: 30 prompt and 4 new tokens do not fit the 32 positions"
    ):
        generate(checkpoint, [Request(prompt, 4)])


@pytest.mark.parametrize("name", ["opt", "llama-dynamic"])
def test_positions_end_where_they_end(name: str, tmp_path: Path) -> None:
    """The last position can be used, and none after it."""
    model = build(VARIANTS[name])
    checkpoint = save(model, tmp_path)
    prompt = tuple(range(60))
    (result,) = generate(checkpoint, [Request(prompt, 5)])
    assert result.tokens == greedy(model, prompt, 5)
    with pytest.raises(InputError, match="shorten the prompt or ask for fewer"):
        generate(checkpoint, [Request(prompt, 6)])


def test_requests_that_cannot_be_run(llama: LoadedModel) -> None:
    """Faults of requests are told in one line that names them."""
    with pytest.raises(InputError, match="request 1: prompt: token 97 is not in the vocabulary of 97"):
        generate(llama, [Request((1,), 1), Request((97,), 1)])
    for faulty, message in (
        (lambda: Request((), 1), "prompt: it is empty"),
        (lambda: Request((1,), 0), "max_new_tokens: 0"),
        (lambda: Sampling(temperature=-1), "temperature: -1"),
        (lambda: Sampling(temperature=float("nan")), "temperature: nan"),
        (lambda: Sampling(top_k=-1), "top_k: -1"),
        (lambda: Sampling(top_p=0), "top_p: 0"),
    ):
        with pytest.raises(InputError, match=message):
            faulty()
    assert generate(llama, []) == []


# Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1e-6, 0.2, 0.7, 0.95, 1.0]),
    seed=st.integers(0, 2**64),
)


@given(st.lists(SAMPLINGS, min_size=1, max_size=6), st.data())
def test_a_choice_does_not_depend_on_the_batch(samplings: list[Sampling], data: st.DataObject) -> None:
    """Alone or in any company and order, a sequence's next token is the same."""
    logits = torch.randn(len(samplings), 10, generator=torch.Generator().manual_seed(len(samplings)))
    steps = [3 * row for row in range(len(samplings))]
    together = choose(logits, samplings, steps).tolist()
    order = data.draw(st.permutations(range(len(samplings))))
    mixed = choose(logits[order], [samplings[row] for row in order], [steps[row] for row in order])
    assert mixed.tolist() == [together[row] for row in order]
    for row, sampling in enumerate(samplings):
        assert choose(logits[row : row + 1], [sampling], [steps[row]]).item() == together[row]


@given(SAMPLINGS, st.integers(0, 50), st.integers(2, 30))
def test_only_allowed_tokens_are_chosen(sampling: Sampling, step: int, size: int) -> None:
    """A token is among the k likeliest, and those likelier than it have less than top_p of what is left."""
    assume(sampling.temperature > 0)
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    token = choose(logits, [sampling], [step]).item()
    ordered = sorted((logits[0] / sampling.temperature).exp().tolist(), reverse=True)
    kept = ordered[: sampling.top_k or size]
    rank = ordered.index(pytest.approx(math.exp(logits[0, token] / sampling.temperature), rel=1e-12))
    assert rank < len(kept)
    assert sum(kept[:rank]) / sum(kept) < sampling.top_p + 1e-12


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(0, 1.0, 5), (3, 1.0, 3), (0, 0.8, 3), (4, 0.5, 2)])
def test_tokens_are_as_frequent_as_they_are_likely(top_k: int, top_p: float, allowed: int) -> None:
    """Over 4000 seeds, each token's share is its probability among the allowed ones, within 4 sigma."""
    shares = torch.tensor([0.1, 0.35, 0.07, 0.2, 0.28], dtype=torch.float64)
    temperature, count = 0.7, 4000
    samplings = [Sampling(temperature, top_k, top_p, seed) for seed in range(count)]
    chosen = choose((shares.log() * temperature).expand(count, 5), samplings, [0] * count)
    keep = shares.sort(descending=True).indices[:allowed]
    expected = torch.zeros(5, dtype=torch.float64)
    expected[keep] = shares[keep] / shares[keep].sum()
    found = torch.bincount(chosen, minlength=5) / count
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_chance_is_the_same_everywhere() -> None:
    """The numbers behind the choices are fixed, spread over [0, 1), and differ between seeds and steps."""
    assert uniform(0, 0) == 0.1709622343137528
    numbers = [uniform(seed, step) for seed in range(50) for step in range(50)]
    assert len(set(numbers)) == len(numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
    assert uniform(1, 11) != uniform(11, 1)


def test_the_likeliest_token_of_equals_is_the_first() -> None:
    """Greedy choice is the smallest of equally likely tokens, as is top_k = 1."""
    logits = torch.full((1, 5000), 2.0)
    logits[0, :3] = 1.0
    assert choose(logits, [Sampling()], [0]).item() == 3
    assert choose(logits, [Sampling(1.0, top_k=1)], [0]).item() == 3


def test_every_step_has_its_own_chance() -> None:
    """The same logits lead to other tokens at other steps."""
    sampling = Sampling(1.0, seed=5)
    tokens = choose(torch.zeros(64, 1000), [sampling] * 64, range(64)).tolist()
    assert len(set(tokens)) > 50
    assert tokens == [choose(torch.zeros(1, 1000), [sampling], [step]).item() for step in range(64)]


def test_rounding_never_leads_to_a_token_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the largest number below 1, the last allowed token is taken."""
    monkeypatch.setattr("executor.sampling.uniform", lambda seed, step: 1 - 2**-53)
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    chosen = choose(logits, [Sampling(1.0, top_k=7)] * 500, [0] * 500)
    assert torch.equal(chosen, logits.sort(descending=True).indices[:, 6])


def test_tied_tables_are_loaded_once(tmp_path: Path) -> None:
    """A table that serves as the output matrix too takes memory once."""
    model = load(save(build(VARIANTS["opt"]), tmp_path), torch.bfloat16)
    assert model.embed["model.decoder.embed_tokens.weight"] is model.head["lm_head.weight"]
