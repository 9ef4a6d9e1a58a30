"""Proves that the endpoints are tools for an MCP client, which reads nothing here but its uploads."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from test_page import draw_photo, expected, make_models

import app
from page.uploads import NO_FILE
from training.load import started

mcp = pytest.importorskip("mcp", reason="gradio[mcp] is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, draw_photo(folder / "photo.jpg"))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[str]:
    """Address of a page that serves its endpoints as tools."""
    from gradio import mcp as gradio_mcp

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setattr(gradio_mcp, "DEFAULT_TEMP_DIR", str(folder / "uploads"))  # read at its import
        demo = app.build_demo(folder, folder / "runs")
        _, url, _ = demo.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True, mcp_server=True)
        yield url
        demo.close()


def ask(page: str, name: str | None = None, **arguments: Any) -> Any:
    """The tools, or the answer of one of them."""
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> Any:
        connection = streamable_http_client(f"{page}gradio_api/mcp/")
        async with connection as (read, write, *_), mcp.ClientSession(read, write) as session:
            await session.initialize()
            return await (session.call_tool(name, arguments) if name else session.list_tools())

    return asyncio.run(talk())


def data_url(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def test_three_tools_with_words(page: str) -> None:
    tools = {tool.name: tool for tool in ask(page).tools}
    assert sorted(tools) == ["architecture", "compare", "segment"]
    told = tools["segment"]
    assert "class of every pixel" in told.description and "8-bit grey PNG" in told.description
    assert "data: URL" in told.inputSchema["properties"]["picture"]["description"]
    assert told.inputSchema["required"] == ["picture"]


def test_a_picture_comes_back_as_its_classes(page: str, folder: Path) -> None:
    answer = ask(page, "segment", picture=data_url(folder / "photo.jpg"), model="unet-tiny")
    assert not answer.isError
    text = " ".join(part.text for part in answer.content if part.type == "text")
    addresses = [word.strip("'\",") for word in text.split() if "class-ids" in word and "http" in word]
    mask = httpx.get(addresses[0])
    (folder / "mask.png").write_bytes(mask.content)
    assert np.array_equal(np.array(Image.open(folder / "mask.png")), expected(folder, "unet-tiny").mask)


def test_an_upload_may_be_named_by_its_address(page: str, folder: Path) -> None:
    files = {"files": ("photo.jpg", (folder / "photo.jpg").read_bytes())}
    (path,) = httpx.post(f"{page}gradio_api/upload", files=files).json()
    answer = ask(page, "segment", picture=f"{page}gradio_api/file={path}", model="unet-tiny")
    assert not answer.isError


@pytest.mark.parametrize("where", ["elsewhere", "own file", "climbing", "nothing", "long"])
def test_no_other_address_is_read(page: str, folder: Path, where: str) -> None:
    photo = folder / "photo.jpg"
    address = {
        "elsewhere": "http://127.0.0.1:9/photo.jpg",
        "own file": f"{page}gradio_api/file={photo}",
        "climbing": f"{page}gradio_api/file={folder}/uploads/../photo.jpg",
        "nothing": f"{page}gradio_api/file=%00",
        "long": f"{page}gradio_api/file=/{'a' * 300}",
    }[where]
    answer = ask(page, "segment", picture=address, model="unet-tiny")
    assert answer.isError and NO_FILE in answer.content[0].text and str(folder) not in str(answer.content)


def test_the_architecture_of_a_network(page: str, folder: Path) -> None:
    answer = ask(page, "architecture", model="searchnet-tiny")
    told = str(answer.content)
    genotype = json.loads((folder / "searchnet-tiny" / "genotype.json").read_text())
    assert not answer.isError and "<svg" in told and genotype["cells"]["C1"][0]["operation"] in told


def test_what_a_client_sends_lies_where_it_is_swept(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """In the page as people start it: gradio.mcp reads its folder when it is imported."""
    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    monkeypatch.setenv("TMPDIR", str(other := tmp_path / "elsewhere"))
    other.mkdir()
    with started() as server:
        before = server.disk()[0]
        answer = ask(f"{server.url}/", "segment", picture=data_url(folder / "photo.jpg"))
        assert not answer.isError and server.disk()[0] >= before + 4  # the picture and its three results
        assert not [path for path in other.rglob("*") if path.is_file()]
