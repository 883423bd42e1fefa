"""What a refusal of the command ``ifap`` looks like."""


def refused(result):
    """Return the one line of a refusal."""
    code, out, err = result
    assert code == 2, out + err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert out == ""
    return err
