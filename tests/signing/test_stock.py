"""What stock tools say: every signed file is accepted, wherever it has been; one byte more or another key is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aegis import manifest, package, signature
from aegis.package import MODEL_SIG, PROVENANCE, SMALL, TAR, TAR_SIG, Package
from aegis.storage import Store, open_store
from sign_model import keys
from sign_model.registry import MlflowRegistry
from sign_model.verify import verify_directory
from tests.signing.stock import MODEL_SIGNING, MODEL_TYPE, Cosign, agree, model_signing, verdicts
from tests.signing.world import World
from tests.storage.servers import gcs, s3


def wild(world: World) -> Path:
    """A model with everything in its names that is allowed."""
    model = world.make_model("wild")
    (model / "ünïcode names").mkdir()
    (model / "ünïcode names" / ("n" * 120)).write_bytes(b"")
    (model / "模型.bin").write_bytes(bytes(range(256)) * 8)
    return model


def extracted(folder: Path, target: Path) -> Path:
    """The archive as GNU tar unpacks it."""
    target.mkdir()
    subprocess.run(["tar", "-xf", folder / TAR, "-C", target], check=True, timeout=60)
    return target


def test_stock_tools_accept_every_signed_file(world: World, cosign: Cosign) -> None:
    signed = world.signed(wild(world))
    folder = world.folder(signed.tar_sha256)
    agree(cosign, world.root / "wild", folder, signed)
    assert verify_directory(folder, world.trusted, target=world.root / "copy") == []
    agree(cosign, world.root / "copy", folder, signed)


def test_stock_tools_refuse_one_byte_more(world: World, cosign: Cosign) -> None:
    model = wild(world)
    folder = world.folder(world.signed(model).tar_sha256)
    for path in (model / "MLmodel", folder / TAR):
        with path.open("ab") as stream:
            stream.write(b"\0")
    said = verdicts(cosign, model, folder)
    # The digest given is the altered model's, which neither statement is about; the provenance is still the tar's.
    assert {name for name, done in said.items() if done.returncode == 0} == {"provenance of the archive"}


def test_stock_tools_refuse_another_key(world: World, cosign: Cosign) -> None:
    model = wild(world)
    folder = world.folder(world.signed(model).tar_sha256)
    other = world.root / "other.pub"
    other.write_bytes(keys.ensure(world.root / "keys" / "other.pem").public_pem())
    assert [name for name, done in verdicts(cosign, model, folder, other).items() if done.returncode == 0] == []


@pytest.mark.parametrize("name", [MODEL_SIG, PROVENANCE, TAR_SIG])
def test_cosign_refuses_a_bundle_with_one_letter_of_its_signature_changed(
    name: str, world: World, cosign: Cosign
) -> None:
    model = wild(world)
    folder = world.folder(world.signed(model).tar_sha256)
    bundle = json.loads((folder / name).read_bytes())
    place = bundle["messageSignature"] if name == TAR_SIG else bundle["dsseEnvelope"]["signatures"][0]
    field = "signature" if name == TAR_SIG else "sig"
    place[field] = place[field][:20] + ("A" if place[field][20] != "A" else "B") + place[field][21:]
    (folder / name).write_text(json.dumps(bundle))
    about = {MODEL_SIG: {"model.sig", "the model"}, TAR_SIG: {"the archive"}}
    refused = {text for text, done in verdicts(cosign, model, folder).items() if done.returncode}
    assert refused == about.get(name, {"provenance of the archive", "provenance of the model"})


def test_a_statement_passes_for_no_other_kind_or_digest(world: World, cosign: Cosign) -> None:
    signed = world.signed(wild(world))
    folder = world.folder(signed.tar_sha256)
    public = folder / package.SIGNER
    for bundle, kind, digest in (
        (folder / PROVENANCE, "slsaprovenance1", "00" * 32),
        (folder / PROVENANCE, MODEL_TYPE, signed.tar_sha256),
        (folder / MODEL_SIG, "slsaprovenance1", signed.root_digest),
        (folder / TAR_SIG, "slsaprovenance1", signed.tar_sha256),
    ):
        assert cosign.attestation(bundle, kind, digest, public).returncode != 0


def test_the_root_digest_is_the_subject_of_the_stock_signer(world: World) -> None:
    model = wild(world)
    command: list[str | Path] = [MODEL_SIGNING, "sign", "key", model, "--signature", world.root / "stock.sig"]
    command += ["--private_key", world.root / "keys" / "signing.pem", "--no-ignore-git-paths"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    bundle = json.loads((world.root / "stock.sig").read_bytes())
    statement = json.loads(signature._bytes(bundle["dsseEnvelope"]["payload"]))
    assert statement["subject"][0]["digest"]["sha256"] == manifest.root_digest(manifest.walk(model))


BUCKETS: dict[str, Callable[[str], AbstractContextManager[Mapping[str, str]]]] = {"gs": gcs, "s3": s3}


@pytest.mark.parametrize("scheme", BUCKETS)
def test_a_package_comes_back_whole_from_a_bucket(scheme: str, world: World, cosign: Cosign) -> None:
    with BUCKETS[scheme]("models") as env:
        store = open_store(f"{scheme}://models/aegis", env=env)
        signed = world.signed(wild(world), store=store)
        assert package.fetch(store, world.trusted, *place(world, signed), world.root / "fetched") == signed
        folder = downloaded(world, store, signed)
    agree(cosign, world.root / "fetched", folder, signed)
    agree(cosign, extracted(folder, world.root / "extracted"), folder, signed)


def place(world: World, signed: Package) -> tuple[str, str, str]:
    return world.environment, world.model, signed.tar_sha256


def downloaded(world: World, store: Store, signed: Package) -> Path:
    folder = world.root / "downloaded" / signed.tar_sha256
    folder.mkdir(parents=True)
    for name in (TAR, *SMALL):
        store.download(f"{package.folder(*place(world, signed))}/{name}", folder / name, limit=1 << 30)
    return folder


def test_a_package_comes_back_whole_from_disk(world: World, cosign: Cosign) -> None:
    signed = world.signed(wild(world))
    assert package.fetch(world.store, world.trusted, *place(world, signed), world.root / "fetched") == signed
    agree(cosign, world.root / "fetched", downloaded(world, world.store, signed), signed)


def test_what_gnu_tar_unpacks_verifies(world: World, cosign: Cosign) -> None:
    signed = world.signed(wild(world))
    folder = world.folder(signed.tar_sha256)
    agree(cosign, extracted(folder, world.root / "extracted"), folder, signed)


def through_argo(source: Path, target: Path) -> Path:
    """A directory as an Argo artifact: one gzipped tar, then unpacked, with the modes and owners of another machine."""

    def foreign(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid, member.gid, member.mtime = 8737, 0, 1_700_000_000
        member.mode = 0o770 if member.isdir() else 0o660
        return member

    archive = target.with_suffix(".tgz")
    with tarfile.open(archive, "x:gz", format=tarfile.GNU_FORMAT) as tar:
        tar.add(source, source.name, filter=foreign)
    target.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", target, "--no-same-owner"], check=True, timeout=60)
    return target / source.name


def test_a_model_and_its_package_pass_through_an_argo_artifact(world: World, cosign: Cosign) -> None:
    model = wild(world)
    judged = manifest.root_digest(manifest.walk(model))
    signed = world.signed(through_argo(model, world.root / "artifact"))
    assert signed.root_digest == judged
    folder = through_argo(world.folder(signed.tar_sha256), world.root / "package")
    assert verify_directory(folder, world.trusted, target=world.root / "copy") == []
    agree(cosign, world.root / "copy", folder, signed)


def test_a_registered_model_comes_back_from_mlflow_as_it_was_signed(world: World, cosign: Cosign, server: str) -> None:
    world.model = "stock-tools"
    signed = world.signed(wild(world))
    folder = world.folder(signed.tar_sha256)
    assert world.promoted(signed.tar_sha256, MlflowRegistry(server)).outcome == "Promoted"
    from mlflow.artifacts import download_artifacts

    model = world.root / "downloaded"
    download_artifacts(f"models:/{world.model}@champion", dst_path=str(model), tracking_uri=server)
    # MLflow's own note of where the files came from: the one file to leave out of what is verified.
    assert model_signing(model, folder).returncode != 0
    note = model / "registered_model_meta"
    assert model_signing(model, folder, ignore=note).returncode == 0
    note.unlink()
    agree(cosign, model, folder, signed)


def test_a_key_made_by_cosign_signs_what_cosign_verifies(world: World, cosign: Cosign) -> None:
    made = cosign.run("generate-key-pair", cwd=world.root / "keys", COSIGN_PASSWORD="correct horse")
    assert made.returncode == 0, made.stderr
    key, password = world.root / "keys" / "cosign.key", world.root / "keys" / "password"
    password.touch(mode=0o600)
    password.write_text("correct horse\n")
    world.signer = keys.load(f"file://{key}", {"AEGIS_SIGNING_PASSWORD_FILE": str(password)})
    public = shutil.copy(key.with_suffix(".pub"), world.trusted_dir / "cosign.pub")
    model = wild(world)
    signed = world.signed(model)
    folder = world.folder(signed.tar_sha256)
    agree(cosign, model, folder, signed)
    assert [name for name, done in verdicts(cosign, model, folder, Path(public)).items() if done.returncode] == []
    assert model_signing(model, folder, Path(public)).returncode == 0
