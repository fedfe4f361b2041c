"""The Hub round trip, with the real `huggingface_hub` client in processes like a user's and a Hub on loopback."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file, save_file

from conversion_helpers import require_same_tensors
from hub_server import MULTIPART_FROM, READER, STRANGER, WRITER, Blob, Hub
from internvlx_hf import InternVLXForConditionalGeneration
from paths import HELPERS, ROOT
from tiny import LVTC, save_tiny, tiny_batch, tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORKER = HELPERS / "hub_worker.py"
DOCS = ROOT / "docs" / "hub.md"
PUSH = """
from internvlx_hf.cli import main
result = main(["push", *{arguments!r}])
"""
LOAD = """
import importlib, sys, torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
kwargs = dict(trust_remote_code=True, **{kwargs!r})
model = AutoModel.from_pretrained({repo!r}, **kwargs).eval()
kwargs.pop("code_revision", None)
processor = AutoProcessor.from_pretrained({repo!r}, **kwargs)
with torch.no_grad():
    logits = model(**load_file({batch!r})).logits
module = type(model).__module__
result = dict(
    logits=logits.flatten()[:256].tolist(),
    module=module,
    code=[importlib.import_module(name).CODE for name in (module, module.rpartition(".")[0] + ".pvtc")],
    processor=type(processor).__module__,
    tokens=processor.image_seq_length,
    imported="internvlx_hf" in sys.modules,
)
"""


class Process:
    """A process that stays open, and runs what it is sent."""

    def __init__(self, hub: Hub, home: Path, *arguments: str, token: str | None = None):
        home.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HF_"))}
        environment |= {
            "HF_HOME": str(home),
            "HF_ENDPOINT": hub.endpoint,
            # the server offers no Xet storage
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }
        command = [sys.executable, str(WORKER), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, cwd=home, text=True, **pipes)

    def run(self, code: str, **values) -> dict:
        self.process.stdin.write(json.dumps(code.format(**values) if values else code) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    def result(self, code: str, **values):
        answer = self.run(code, **values)
        assert answer["error"] is None, answer["error"]
        return answer["result"]

    def push(self, *arguments) -> tuple[int, str, str]:
        """Status, output and last line of the errors of `internvlx push`."""
        answer = self.run(PUSH, arguments=list(map(str, arguments)))
        assert answer["error"] is None, answer["error"]
        errors = [line for line in answer["err"].splitlines() if line.startswith("internvlx")]
        return answer["result"], answer["out"], "\n".join(errors)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def make_checkpoint(folder: Path, version: int, **saving) -> None:
    """A checkpoint whose code says which version it is, in two of its modules; each version has its own weights."""
    save_tiny(folder, seed=version, **saving, **LVTC)
    for name in ("modeling_internvlx.py", "pvtc.py"):
        with (folder / name).open("a") as module:
            module.write(f"\nCODE = {version}\n")


def logits_of(folder: Path, batch: Path) -> torch.Tensor:
    model = InternVLXForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**load_file(batch)).logits.flatten()[:256]


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    make_checkpoint(folder / "v1", 1, max_shard_size="250KB")
    make_checkpoint(folder / "v2", 2)
    batch = tiny_batch(tiny_model(**LVTC).config, [[3, "tile", 5], [7]])
    save_file(batch, folder / "batch.safetensors")
    return folder


@pytest.fixture(scope="module")
def writer(hub, folders):
    """The process of someone who has the package and may write."""
    process = Process(hub, folders / "writer", token=WRITER)
    yield process
    process.close()


@pytest.fixture(scope="module")
def reader(hub, folders):
    """A process in which the package cannot be imported."""
    process = Process(hub, folders / "reader", "bare")
    yield process
    process.close()


def assert_is(found: dict, folder: Path, batch: Path, code: int) -> None:
    """1e-4 on logits of size 1: weights mapped from a file lie at odd addresses, where kernels sum in another order."""
    torch.testing.assert_close(torch.tensor(found["logits"]), logits_of(folder, batch), atol=1e-4, rtol=0)
    assert found["code"] == [code, code]
    assert found["module"].startswith("transformers_modules.")
    assert found["processor"].startswith("transformers_modules.")
    assert (found["tokens"], found["imported"]) == (4, False)


def test_versions_of_weights_and_code_are_pushed_loaded_and_pinned_together(hub, folders, writer, reader):
    batch = str(folders / "batch.safetensors")
    status, out, _ = writer.push(folders / "v1", "you/versions", "--message", "The first")
    assert status == 0
    first = hub.head("you/versions")
    assert out.strip() == f"{hub.endpoint}/you/versions/commit/{first}"
    assert hub.repositories["you/versions"].messages[first] == "The first"
    shards = {path.name for path in (folders / "v1").glob("model-*")}
    assert len(shards) >= 3
    assert shards | {"README.md", "model.safetensors.index.json", "pvtc.py"} <= set(hub.files("you/versions"))

    # a download resumes at a whole piece of 10 MB, more than these files have
    reader.result("from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 20_000")
    drop = hub.drop("GET", "^/cdn/", after=70_000)
    assert_is(reader.result(LOAD, repo="you/versions", kwargs={}, batch=batch), folders / "v1", batch, code=1)
    assert hub.dropped[-1] is drop
    resumed = [request.range for request in hub.requests("GET", "^/cdn/") if request.range]
    assert resumed == ["bytes=60000-"]

    status, out, _ = writer.push(folders / "v2", "you/versions")
    assert status == 0
    second = hub.head("you/versions")
    assert second != first
    # from_pretrained would else take model.safetensors with the old index beside it, or the other way round
    assert [f"removed weights of another checkpoint from the repository: {name}" for name in sorted(shards)] == [
        line for line in out.splitlines() if "-of-" in line
    ]
    assert not shards & set(hub.files("you/versions"))
    assert "model.safetensors" in hub.files("you/versions")

    for kwargs, folder, code in (
        ({}, "v2", 2),
        ({"revision": first}, "v1", 1),
        ({"revision": second}, "v2", 2),
        ({"revision": first, "code_revision": second}, "v1", 2),
    ):
        found = reader.result(LOAD, repo="you/versions", kwargs=kwargs, batch=batch)
        assert_is(found, folders / folder, batch, code)


def test_mixins_of_model_and_processor_push_all_that_loads(hub, folders, writer):
    """And a connection that breaks in the middle of an upload, in one piece or in parts, loses nothing."""
    drops = [hub.drop("PUT", r"^/lfs/\w{64}$", after=20_000), hub.drop("PUT", r"^/lfs/\w{64}/2$", after=20_000)]
    make_checkpoint(folders / "mixins", 3)
    writer.result(
        """
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
model = InternVLXForConditionalGeneration.from_pretrained({folder!r})
model.push_to_hub("you/mixins", max_shard_size="250KB", private=True)
InternVLXProcessor.from_pretrained({folder!r}).push_to_hub("you/mixins")
""",
        folder=str(folders / "mixins"),
    )
    assert all(drop in hub.dropped for drop in drops)
    files = hub.files("you/mixins")
    shards = [content for name, content in files.items() if name.endswith(".safetensors")]
    assert {len(shard) >= MULTIPART_FROM for shard in shards} == {True, False}
    arrived = {name: tensor for shard in shards for name, tensor in load(shard).items()}
    require_same_tensors(arrived, folders / "mixins")
    assert {"modeling_internvlx.py", "processing_internvlx.py", "tokenizer.json", "chat_template.jinja"} <= set(files)
    assert hub.repositories["you/mixins"].private


def test_second_attempt_uploads_what_is_missing_and_nothing_else(hub, folders, writer):
    shutil.copytree(folders / "v1", folders / "resumed")
    for shard in (folders / "resumed").glob("model-*"):
        save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    shards = sorted((folders / "resumed").glob("model-*"))
    small = next(shard for shard in reversed(shards) if shard.stat().st_size < MULTIPART_FROM)
    hub.refused = sha256(small)
    status, _, error = writer.push(folders / "resumed", "you/resumed")
    assert status == 1
    assert "you/resumed" in error
    assert "the storage is full" in error
    assert list(hub.files("you/resumed")) == [".gitattributes"], "nothing was committed"
    hub.refused, before = None, len(hub.requests("PUT", "^/lfs/"))
    arrived = {sha256(shard) for shard in shards} & hub.objects.keys()
    assert arrived

    assert writer.push(folders / "resumed", "you/resumed")[0] == 0
    again = {request.path.split("/")[2] for request in hub.requests("PUT", "^/lfs/")[before:]}
    assert again == {sha256(shard) for shard in shards} - arrived
    for shard in shards:
        assert hub.files("you/resumed")[shard.name] == shard.read_bytes()

    before = len(hub.requests("PUT", "")) + len(hub.requests("POST", "/commit/"))
    status, out, _ = writer.push(folders / "resumed", "you/resumed")
    assert (status, "already up to date" in out) == (0, True)
    assert len(hub.requests("PUT", "")) + len(hub.requests("POST", "/commit/")) == before


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_private_repositories_and_tokens(hub, folders, writer, reader):
    batch = str(folders / "batch.safetensors")
    assert writer.push(folders / "v2", "you/private", "--private")[0] == 0
    assert hub.repositories["you/private"].private

    answer = reader.run(LOAD, repo="you/private", kwargs={}, batch=batch)
    assert "OSError" in answer["error"]
    found = reader.result(LOAD, repo="you/private", kwargs={"token": READER}, batch=batch)
    assert_is(found, folders / "v2", batch, code=2)
    assert not any(request.has_token for request in hub.requests("GET", "^/cdn/")), "a token left the Hub"

    def refusal(*arguments) -> str:
        before = len(hub.requests("PUT", ""))
        status, out, error = writer.push(folders / "v2", *arguments)
        assert (status, out) == (1, "")
        assert len(hub.requests("PUT", "")) == before
        return error

    assert "the token has no write access" in refusal("you/private", "--token", READER)
    assert "the token has no write access" in refusal("you/private", "--token", STRANGER)
    assert "does not accept the token" in refusal("you/private", "--token", "hf_wrong")
    writer.result("from huggingface_hub import create_repo; create_repo('you/open')")
    assert "exists and is public, which --private does not change" in refusal("you/open", "--private")
    assert "is not a repository id" in refusal("you/versions/too/deep")
    writer.result("import os; token = os.environ.pop('HF_TOKEN')")
    assert "the Hub requires a token. Run `hf auth login`, set HF_TOKEN, or pass --token." in refusal("you/private")
    writer.result("os.environ['HF_TOKEN'] = token")


def test_branches_and_pull_requests_leave_main_alone(hub, folders, writer):
    assert writer.push(folders / "v1", "you/branches")[0] == 0
    main = hub.head("you/branches")
    assert writer.push(folders / "v2", "you/branches", "--revision", "next")[0] == 0
    assert hub.head("you/branches") == main
    assert "model.safetensors" in hub.files("you/branches", "next")
    status, out, _ = writer.push(folders / "v2", "you/branches", "--create-pr")
    assert status == 0
    assert "/discussions/" in out
    assert hub.head("you/branches") == main


def test_card_that_was_edited_on_the_hub_survives_the_next_push(hub, folders, writer):
    folder = shutil.copytree(folders / "v2", folders / "carded")
    assert writer.push(folder, "you/carded")[0] == 0
    card = hub.files("you/carded")["README.md"].decode()
    assert 'from_pretrained("you/carded"' in card
    assert not (folder / "README.md").exists()
    repository = hub.repositories["you/carded"]

    def edit(text: str) -> None:
        files = {**repository.commits[hub.head("you/carded")], "README.md": Blob(text.encode(), False)}
        repository.commit("main", files, "edit the card")

    edit(card.replace("---\n\n", "license: mit\n---\n\nWritten on the Hub.\n\n", 1))
    assert writer.push(folder, "you/carded")[0] == 0
    card = hub.files("you/carded")["README.md"].decode()
    assert "Written on the Hub." in card
    assert ModelCard(card).data.license == "mit"
    assert "Weights: `mit`" in card

    (folder / "README.md").write_text(card.replace("Written on the Hub.", "Written here."))
    before = hub.head("you/carded")
    status, _, error = writer.push(folder, "you/carded")
    assert (status, hub.head("you/carded")) == (1, before)
    assert "--card hub or --card folder" in error
    assert writer.push(folder, "you/carded", "--card", "hub")[0] == 0
    assert "Written on the Hub." in hub.files("you/carded")["README.md"].decode()
    assert writer.push(folder, "you/carded", "--card", "folder")[0] == 0
    card = hub.files("you/carded")["README.md"].decode()
    assert "Written here." in card
    assert "Written on the Hub." not in card


def test_trainer_that_pushes_keeps_the_card_and_sends_the_code(hub, folders, writer):
    """Also in what it pushes while it trains. What else lies in the folder stays there."""
    out = folders / "trainer"
    shutil.copytree(folders / "v2", out)
    for name in ("id_rsa", "data.jsonl", "train.py", "other.safetensors", "runs/events.out.tfevents.1"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("private")
    (out / "NOTICE").symlink_to(out / ".." / "batch.safetensors")
    (out / "README.md").write_text("# Mine\n")
    writer.result(
        """
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from internvlx_hf import InternVLXForConditionalGeneration, InternVLXProcessor
from internvlx_hf.hub import PushesCheckpoint

class PushingTrainer(PushesCheckpoint, Trainer):
    pass

batch = load_file({batch!r})
sample = dict(batch, labels=batch["input_ids"])
arguments = TrainingArguments(
    {out!r}, max_steps=1, save_steps=1, per_device_train_batch_size=1, report_to="none", remove_unused_columns=False,
    push_to_hub=True, hub_model_id="you/trained", use_cpu=True, disable_tqdm=True, hub_strategy="checkpoint",
)
trainer = PushingTrainer(
    InternVLXForConditionalGeneration.from_pretrained({out!r}), arguments, data_collator=lambda samples: samples[0],
    train_dataset=[sample] * 2, processing_class=InternVLXProcessor.from_pretrained({out!r}),
)
trainer.train()
trainer.push_to_hub()
""",
        batch=str(folders / "batch.safetensors"),
        out=str(out),
    )
    repository = hub.repositories["you/trained"]
    messages = {message: sha for sha, message in repository.messages.items()}
    assert {"Training in progress, step 1", "End of training"} <= messages.keys()
    for sha in (messages["Training in progress, step 1"], hub.head("you/trained")):
        files = repository.commits[sha]
        assert {"modeling_internvlx.py", "lvtc.py", "processing_internvlx.py", "model.safetensors"} <= files.keys()
        names = {name for name in files if not name.startswith("last-checkpoint/")}
        assert names == {*(path.name for path in (folders / "v2").iterdir()), ".gitattributes", "README.md"}
    state = {name.removeprefix("last-checkpoint/") for name in hub.files("you/trained") if "last-checkpoint/" in name}
    assert {"optimizer.pt", "trainer_state.json", "model.safetensors"} <= state
    assert "training_args.bin" not in state, "the Hub's token is pickled in it"
    assert (out / "checkpoint-1" / "training_args.bin").exists()
    card = hub.files("you/trained")["README.md"].decode()
    assert "# Mine" in card
    assert "## What an image costs" in card
    assert 'from_pretrained("you/trained"' in card


def test_documentation_s_blocks_run(hub, folders, writer):
    shutil.copytree(folders / "v2", folders / "writer" / "out" / "demo" / "model")
    blocks = re.findall(r"^```py\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        answer = writer.run(block)
        assert answer["error"] is None, answer["error"]
    assert hub.repositories["you/my-model"].private
