"""Mixes: presets are work that can be planned, files of lengths lose no sequence, faults are one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import cli
from simulator.errors import InputError
from simulator.length_buckets import Lengths, bucketed
from simulator.mix import Mix, Part, find_mix, lengths_mix, preset_names, single_mix
from simulator.model_config import load_model
from simulator.workload import Workload

LENGTHS = st.lists(
    st.builds(
        Lengths,
        prompt_len=st.integers(1, 4000),
        gen_len=st.one_of(st.just(0), st.integers(1, 500)),
        count=st.integers(1, 50),
    ),
    min_size=1,
    max_size=12,
)


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(cli, list(arguments))


def written(path: Path, text: str) -> Path:
    """Write a file of lengths."""
    path.write_text(text, encoding="utf-8")
    return path


# Presets.


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_work_that_can_be_planned(name: str) -> None:
    """Every preset reads under its own name, names its source, and fits into 8192 positions."""
    mix = find_mix(name)
    assert mix.name == name
    assert mix.source is not None
    assert mix.source.url
    assert mix.description
    for part in mix.parts:
        assert part.workload.positions <= load_model("llama-3-8b").max_positions
        assert part.counted_tokens == part.workload.counted_tokens > 0
    assert mix.total_tokens == sum(part.count * part.workload.counted_tokens for part in mix.parts)


def test_one_part_of_a_preset() -> None:
    """A part is named after a slash; alone it is no chain, and is the workload of the whole."""
    whole, critic = find_mix("voyager"), find_mix("voyager/critic")
    assert (whole.serial, whole.single) == (True, None)
    assert (critic.serial, critic.name) == (False, "voyager/critic")
    assert critic.single == next(part.workload for part in whole.parts if part.name == "critic")


def test_published_lengths() -> None:
    """The means of two published sets of conversations, and the work of FlexGen's benchmark."""
    lengths = {name: find_mix(name).single for name in ("alpaca", "sharegpt", "flexgen")}
    assert {name: (work.prompt_len, work.gen_len) for name, work in lengths.items() if work} == {
        "alpaca": (19, 58),
        "sharegpt": (161, 338),
        "flexgen": (512, 32),
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alpacca", "did you mean alpaca?"),
        ("?", "presets: alpaca"),
        ("voyager/critics", "parts: action, critic, curriculum"),
        ("alpaca/", "no part ''"),
        ("", "presets: "),
        ("../workloads/alpaca", "presets: "),
        ("a" * 5000, "presets: "),
        ("a\0b", "presets: "),
    ],
)
def test_an_unknown_preset(name: str, said: str) -> None:
    """An unknown preset or part is told in one line that says what there is."""
    with pytest.raises(InputError) as caught:
        find_mix(name)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_parts_have_names_of_their_own() -> None:
    """Two parts of one name are refused."""
    part = Part(name="same", workload=Workload())
    with pytest.raises(ValueError, match="two parts are called 'same'"):
        Mix(name="mix", parts=(part, part))


@given(prefix=st.integers(0, 8), own=st.integers(1, 40), gen=st.integers(0, 40), queue=st.none() | st.just(9))
def test_a_single_workload_is_a_mix(prefix: int, own: int, gen: int, queue: int | None) -> None:
    """A mix of one workload has that workload and its tokens, and its name tells it from others."""
    work = Workload(prompt_len=prefix + own, gen_len=gen, shared_prefix=prefix, num_prompts=queue)
    mix = single_mix(work)
    assert mix.single == work
    assert mix.total_tokens == work.counted_tokens
    other = single_mix(work.model_copy(update={"num_prompts": 7}))
    assert other.name != mix.name


# Files of lengths.


@given(rows=LENGTHS, most=st.integers(1, 8))
def test_no_sequence_is_lost_or_cut(rows: list[Lengths], most: int) -> None:
    """Parts have all sequences and tokens, a place for each, and are as many as allowed and no more.

    Prompts without output are kept apart from the others, even where one part is asked for.
    """
    parts = list(bucketed(rows, most))
    kinds = len({row.gen_len == 0 for row in rows})
    assert len(parts) <= max(most, kinds)
    assert sum(count for *_, count, _ in parts) == sum(row.count for row in rows)
    for silent in (True, False):
        chosen = [row for row in rows if (row.gen_len == 0) == silent]
        same = [part for part in parts if (part[1] == 0) == silent]
        counted = sum(row.count * (row.prompt_len if silent else row.gen_len) for row in chosen)
        assert sum(count * tokens for *_, count, tokens in same) == pytest.approx(counted)
    for row in rows:
        assert any(
            row.prompt_len <= prompt_len and row.gen_len <= gen_len and (row.gen_len == 0) == (gen_len == 0)
            for prompt_len, gen_len, *_ in parts
        )
    assert all(tokens <= (gen_len or prompt_len) for prompt_len, gen_len, _, tokens in parts)


def padded(parts: Sequence[tuple[int, int, int, float]]) -> int:
    """Count the tokens of parts as they are run."""
    return sum(count * (prompt_len + gen_len) for prompt_len, gen_len, count, _ in parts)


@given(rows=LENGTHS)
def test_more_parts_are_less_padding(rows: list[Lengths]) -> None:
    """Padded tokens never grow with more parts, and with a part for each length there is no padding."""
    totals = [padded(list(bucketed(rows, most))) for most in range(1, len(rows) + 2)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == sum(row.count * (row.prompt_len + row.gen_len) for row in rows)


@given(rows=LENGTHS.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_rows_does_not_matter(rows: tuple[list[Lengths], list[Lengths]]) -> None:
    """As little is padded whatever the order of the rows."""
    assert padded(list(bucketed(rows[0], 2))) == padded(list(bucketed(rows[1], 2)))


def test_parts_by_hand(tmp_path: Path) -> None:
    """Two short and three long answers, and one prompt that is scored, become three parts.

    Of the long ones 300 x 3 tokens are run and 100 + 2 x 250 count, 200 each.
    """
    text = "gen_len,prompt_len,count\n10,16,2\n100,100,\n250,200,2\n0,640,1\n"
    mix = lengths_mix(written(tmp_path / "calls.csv", text), buckets=3)
    assert mix.name == "calls"
    assert [(part.name, part.count, part.tokens) for part in mix.parts] == [
        ("16/10", 2.0, 10.0),
        ("200/250", 3.0, 200.0),
        ("640/0", 1.0, 640.0),
    ]
    assert mix.total_tokens == 20 + 600 + 640
    assert "6 sequences of calls.csv" in mix.description


@given(rows=LENGTHS)
def test_files_read_as_they_were_written(
    rows: list[Lengths], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file with a count for each row, and one with each sequence by itself, are the same mix."""
    folder = tmp_path_factory.mktemp("lengths")
    once = "".join(f"{row.prompt_len},{row.gen_len},{row.count}\n" for row in rows)
    each = "".join(f"{row.prompt_len},{row.gen_len}\n" * row.count for row in rows)
    first = lengths_mix(written(folder / "a.csv", "prompt_len,gen_len,count\n" + once))
    second = lengths_mix(written(folder / "b.csv", "\ufeffprompt_len,gen_len\n" + each))
    shapes = [[(part.name, part.count) for part in mix.parts] for mix in (first, second)]
    assert shapes[0] == shapes[1]
    assert first.total_tokens == pytest.approx(second.total_tokens)


FILES = {
    "empty": "",
    "no header": "16,4\n",
    "missing column": "prompt_len\n16\n",
    "unknown column": "prompt_len,gen_len,colour\n16,4,red\n",
    "no row": "prompt_len,gen_len\n",
    "missing value": "prompt_len,gen_len\n16\n",
    "negative": "prompt_len,gen_len\n-16,4\n",
    "no prompt": "prompt_len,gen_len\n0,4\n",
    "none of them": "prompt_len,gen_len,count\n16,4,0\n",
    "fraction": "prompt_len,gen_len\n16,4.5\n",
    "words": "prompt_len,gen_len\nmany,4\n",
    "huge": "prompt_len,gen_len\n" + "9" * 5000 + ",4\n",
    "a field without end": "prompt_len,gen_len\n" + "9" * 200_000 + ",4\n",
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_of_lengths(case: str, tmp_path: Path) -> None:
    """A fault in a file of lengths is told in one line with the file and what to do."""
    path = written(tmp_path / "lengths.csv", FILES[case])
    with pytest.raises(InputError) as caught:
        lengths_mix(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@given(text=st.text(max_size=60), header=st.sampled_from(["", "prompt_len,gen_len\n"]))
def test_any_text_as_a_file_of_lengths(
    text: str, header: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is in the file, it is a mix or it is refused in one line."""
    path = tmp_path_factory.mktemp("any") / "any.csv"
    path.write_text(header + text, encoding="utf-8", newline="")
    try:
        mix = lengths_mix(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - a mix is right too
    else:
        assert mix.total_tokens > 0


def test_what_is_no_file_of_lengths(tmp_path: Path) -> None:
    """A missing file, a folder and a binary file are refused in one line; a long name is a name."""
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.csv", "folder.csv", "binary.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            find_mix(name, tmp_path)
    written(tmp_path / ("a" * 120 + ".csv"), "prompt_len,gen_len\n16,4\n")
    assert find_mix("a" * 120 + ".csv", tmp_path).single == Workload(prompt_len=16, gen_len=4)


# The command line.


def complaint(result: Result) -> str:
    """Give the one line that a wrong input must end with."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


GOOD = ("plan", "--hw", "rtx-4090", "--model", "opt-1.3b")


def test_a_preset_has_lengths_of_its_own() -> None:
    """``--workload`` beside a length is refused, also where the length is the usual one."""
    for option in ("--prompt-len", "--gen-len", "--shared-prefix", "--num-prompts"):
        assert option in complaint(run(*GOOD, "--workload", "alpaca", option, "32"))
    assert "did you mean alpaca?" in complaint(run(*GOOD, "--workload", "alpacca"))


def test_several_parts_need_a_study() -> None:
    """A plan is of one part: of a preset with several, the message names them."""
    said = complaint(run(*GOOD, "--workload", "voyager"))
    assert "voyager/critic" in said
    assert "planner study" in said


def test_a_plan_for_a_preset() -> None:
    """A preset is planned as its lengths are."""
    named = run(*GOOD, "--workload", "alpaca", "--format", "json")
    typed = run(*GOOD, "--prompt-len", "19", "--gen-len", "58", "--format", "json")
    assert named.exit_code == 0, named.output
    assert named.stdout == typed.stdout
