"""Where runs are sent to: modes, servers and keys as W&B's client reads them, and never a secret."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, get_args

import pytest

from cnnexp.core.errors import UsageError
from cnnexp.tracking import mirror_process, target
from cnnexp.tracking.mirror_process import describe_error
from cnnexp.tracking.target import CLIENT_MODES, Target, resolve_mode
from tests.fakes.wandb_server import KEY


def test_servers_and_keys_are_read_from_the_files_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    assert target.base_url() == "https://api.wandb.ai" and target.resolve_mode("auto") == "offline"
    Path("settings").write_text("[default]\nbase_url = https://wandb.example:8443/\n", encoding="utf-8")
    Path("netrc").write_text(
        f"machine wandb.example:8443\n  login user\n  password {KEY}\n", encoding="utf-8"
    )
    assert target.base_url() == "https://wandb.example:8443" and target.resolve_mode("auto") == "online"
    assert KEY not in mirror_process.describe_error(ValueError(f"refused {KEY}"))

    def distrust(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", distrust)
    assert target.Reachability()
    assert target.format_sync_command(Path("else where/x"), "out") == (
        "cnnexp sync x --to out --results-dir 'else where'"
    )
    assert target.format_sync_command(tmp_path / "results" / "x") == "cnnexp sync x"


def test_modes_are_those_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb import Settings

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert set(CLIENT_MODES) == set(get_args(Settings.model_fields["mode"].annotation))
    files = {"online": "run", "offline": "offline-run"}  # names of the client's folders
    for mode in set(CLIENT_MODES) - {"disabled"}:
        monkeypatch.setenv("WANDB_MODE", mode)
        assert files[resolve_mode("auto")] == Settings(mode=mode).run_mode  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled" and resolve_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    for mode in ("auto", "online", "offline"):
        with pytest.raises(UsageError, match="WANDB_MODE=ofline: did you mean 'offline'"):
            resolve_mode(mode)
    assert resolve_mode("disabled") == "disabled"


def test_secrets_of_an_address_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for address, word in {
        "https://me:s%40cret/x@wandb.example:8443": "s@cret/x",
        "me:s%40cret@wandb.example": "s@cret",
        "https://s@cret@wandb.example": "s@cret",
    }.items():
        monkeypatch.setenv("WANDB_BASE_URL", address)
        online = Target(mode="online", project="p", entity=None)
        printed = [
            online.address,
            target.Reachability().host,
            describe_error(ValueError(f"no {address} {word}")),
        ]
        with pytest.raises(UsageError) as refused:
            resolve_mode("online")
        for text in (*printed, str(refused.value)):
            assert "cret" not in text
        assert "wandb.example" in printed[0] and printed[1].startswith("wandb.example")
