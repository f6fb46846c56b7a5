"""A fast call of `reprise render`, and what a refusal looks like."""

FAST = ("--renderer", "fake", "--rewriter", "none", "--best-of", "4")


def one_line(result, code, *parts):
    assert result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert lines[-1].startswith("reprise: ") and result.out == ""
    assert (
        len([line for line in lines if line.startswith("reprise: ")]) == 1 and "Traceback" not in result.err
    )
    for part in parts:
        assert part in lines[-1], lines[-1]
