"""What islands see of each other's datasets: records, cards, manifests, replicas; and what a bad neighbour can do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from island.catalog import store
from island.catalog.messages import Card, DatasetRecord, ReplicaRecord, SearchQuery, SnapshotHolding
from island.errors import BadInput, NotFound, Unreachable
from island.kernel import codec
from island.kernel.codec import Malformed
from tests.islands.publishing import Island, Islands, until, write_table
from tests.standins.faults import Gone

WHO = "administrator@alpha"


async def sees(island: Island, count: int) -> None:
    """Wait until an island lists so many datasets and has their cards."""

    async def enough() -> bool:
        wanted = await island.gossip_db.read(lambda conn: store.missing_cards(conn, "", 1))
        return len(await island.catalog.datasets()) == count and not wanted

    await until(island, enough)


async def named(island: Island, other: Island) -> None:
    """Wait until an island knows another one by its name."""

    async def known() -> bool:
        return island.membership.display(other.trust.me) == other.name

    await until(island, known)


async def put(island: Island, key: str, value: bytes) -> None:
    """Write anything into an island's own log."""
    await island.state.write(lambda conn: island.gossip.put(conn, key, value))
    island.gossip.publish_soon()


async def test_publication_and_withdrawal_spread_even_if_caller_is_cancelled(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    path = write_table(tmp_path / "data" / "virgo.parquet", 30)
    async with islands.island("beta") as beta, islands.island("alpha") as alpha:
        await named(alpha, beta)
        Gone(alpha.state)
        with pytest.raises(asyncio.CancelledError):
            await alpha.catalog.publish(WHO, path, "virgo")
        await sees(beta, 1)
        Gone(alpha.state)
        with pytest.raises(asyncio.CancelledError):
            await alpha.catalog.unpublish(WHO, "virgo")
        await sees(beta, 0)


async def test_a_dataset_is_seen_searched_and_shown_while_its_owner_is_down(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    path = write_table(tmp_path / "data" / "virgo.parquet", 3000)
    async with islands.island("beta") as beta:
        async with islands.island("alpha") as alpha:
            await named(alpha, beta)
            view = await alpha.catalog.publish(
                WHO, path, "virgo", title="Nearby galaxies", description="Around Messier 87", licence="CC-BY"
            )
            assert "2 islands now" in alpha.catalog.audience()
            await sees(beta, 1)
            assert await beta.catalog.datasets() == [view]
            resolved = await beta.catalog.resolve("alpha/virgo")
            listed = await beta.catalog.manifest(resolved.owner, resolved.snapshot, resolved.name)
            entry = await listed.find("virgo.parquet")
            hashes = await listed.hashes(entry)
            data = path.read_bytes()
            assert all(hashes.verify(c.index, data[c.start : c.end]) for c in hashes.chunks(0, entry.size))

        async def lost() -> bool:
            return not beta.membership.is_up(view.owner)

        await until(beta, lost)
        # A word that only the card has, a UCD, the sky to the order of the card.
        for query in (
            SearchQuery(words="messier"),
            SearchQuery(column="phot.mag"),
            SearchQuery(region="circle 187.5 12.5 0.2"),
            SearchQuery(words="galaxy", column="dec", region="circle 187.5 12.5 1", format="PARQUET"),
        ):
            assert await beta.catalog.search(query) == [view]
        # Within a cell of the record's coverage, and outside the card's.
        assert await beta.catalog.search(SearchQuery(region="circle 189.2 12.5 0.05")) == []
        details = await beta.catalog.show("alpha/virgo")
        assert details.card is not None
        assert details.card.licence == "CC-BY"
        assert [(holder.display, holder.state != "up") for holder in details.holders] == [("alpha", True)]
        assert details.status.bytes_local == 0
        # The manifest was read before, so it can still be read; another one cannot.
        beta.catalog._manifests.clear()
        assert (await beta.catalog.manifest(resolved.owner, resolved.snapshot)).root == listed.root
        with pytest.raises(Unreachable):
            await beta.catalog.manifest(resolved.owner, "0" * 64)
    async with islands.island("beta") as beta:
        assert await beta.catalog.datasets() == [view]
        assert await beta.catalog.search(SearchQuery(words="messier")) == [view]


async def test_withdrawn_dataset_disappears_everywhere(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        path = write_table(tmp_path / "data" / "a.parquet")
        await alpha.catalog.publish(WHO, path, "stars")
        await sees(beta, 1)
        assert len(await beta.catalog.search(SearchQuery(words="stars"))) == 1
        await alpha.catalog.unpublish(WHO, "stars")
        await sees(beta, 0)
        assert await beta.catalog.search(SearchQuery(words="stars")) == []
        with pytest.raises(NotFound):
            await beta.catalog.resolve("alpha/stars")


async def test_replicas_are_holders_once_they_are_complete(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        view = await alpha.catalog.publish(WHO, write_table(tmp_path / "data" / "a.parquet"), "stars")
        old, me, other = "c" * 64, alpha.trust.me, beta.trust.me
        held = ReplicaRecord(
            held=(
                SnapshotHolding(snapshot=view.snapshot, state="complete", size=5),
                SnapshotHolding(snapshot=old, state="begun"),
            )
        )
        await put(beta, f"replica/{me}/stars", codec.encode(held))

        async def known() -> bool:
            return alpha.catalog.holders(me, "stars", view.snapshot) == [me, other]

        await until(alpha, known)
        await named(alpha, beta)
        assert alpha.catalog.holders(me, "stars", old) == [me]
        details = await alpha.catalog.show("alpha/stars")
        assert [(h.display, h.role) for h in details.holders] == [("alpha", "owner"), ("beta", "complete")]
        # What another island begins to hold can be named by the beginning of its hash.
        await sees(beta, 1)
        assert (await beta.catalog.resolve("alpha/stars@cccc")).snapshot == old
        await beta.state.write(lambda conn: beta.gossip.delete(conn, f"replica/{me}/stars"))
        beta.gossip.publish_soon()

        async def gone() -> bool:
            return alpha.catalog.holders(me, "stars", view.snapshot) == [me]

        await until(alpha, gone)


async def test_error_for_an_unknown_dataset_suggests_similar_names(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        await alpha.catalog.publish(WHO, write_table(tmp_path / "data" / "a.parquet"), "galaxies")
        await sees(beta, 1)
        for text, hint in (
            ("alpha/galaxys", "alpha/galaxies"),
            ("beta/galaxies", "alpha/galaxies"),
            ("alpha/xyz", "dataset ls"),
        ):
            with pytest.raises(NotFound) as caught:
                await beta.catalog.resolve(text)
            assert hint in caught.value.hint
        with pytest.raises(NotFound):
            await beta.catalog.resolve("gamma/galaxies")
        with pytest.raises(NotFound) as caught:
            await beta.catalog.resolve("alpha/galaxies@0000")
        assert "newest" in caught.value.hint
        for text in ("galaxies", "alpha/a/b", "alpha/galaxies@xyz", ""):
            with pytest.raises(BadInput):
                await beta.catalog.resolve(text)


RECORD = DatasetRecord(
    format="parquet", rows=1, size=1, files=1, snapshot="a" * 64, created=1.0, updated=2.0, card="b" * 64
)


async def test_bad_records_and_cards_of_one_island_do_not_affect_others(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        import msgspec

        replace = msgspec.structs.replace
        bad = {
            "dataset/junk": b"\xff\xff",
            "dataset/empty": b"",
            "dataset/deep": b"\x91" * 4000,
            "dataset/a/b": codec.encode(RECORD),
            "dataset/coverage": codec.encode(replace(RECORD, coverage=b"\x05\x01\xff")),
            "dataset/private": codec.encode(replace(RECORD, visibility="group")),
            "dataset/negative": codec.encode(replace(RECORD, rows=-1)),
            "dataset/hash": codec.encode(replace(RECORD, snapshot="A" * 64)),
            "dataset/nan": codec.encode(replace(RECORD, created=float("nan"))),
            "replica/xyz/stars": codec.encode(ReplicaRecord(held=())),
            "replica/" + "0" * 64: codec.encode(ReplicaRecord(held=())),
            "replica/" + "0" * 64 + "/a": b"junk",
        }
        for key, value in bad.items():
            await put(beta, key, value)
        # A record whose card is no card, and one whose card is hostile.
        hostile = Card(snapshot="a" * 64, format="parquet", moc="5/1-99999999999")
        names: list[str] = []

        def cards(conn: object) -> None:
            for data in (b"no card", codec.encode(hostile)):
                names.append(beta.gossip.blobs.put(conn, data))  # type: ignore[arg-type]  # a connection

        await beta.state.write(cards)
        for name, card in zip(("nocard", "badmoc"), names, strict=True):
            record = replace(RECORD, card=card, coverage=bytes((0, 0, 0xFF, 0x0F)))
            await put(beta, f"dataset/{name}", codec.encode(record))
        good = write_table(tmp_path / "data" / "a.parquet")
        await alpha.catalog.publish(WHO, good, "good")

        async def seen() -> bool:
            return {view.name for view in await alpha.catalog.datasets()} == {"good", "nocard", "badmoc"}

        await until(alpha, seen)

        async def fetched() -> bool:
            return not await alpha.gossip_db.read(lambda conn: conn.execute("SELECT 1 FROM catalog_wanted").fetchone())

        await until(alpha, fetched)
        found = {view.name for view in await alpha.catalog.search(SearchQuery(region="circle 187.5 12.5 5"))}
        assert "good" in found
        assert {view.name for view in await alpha.catalog.search(SearchQuery(words="parquet"))} == {
            "good",
            "nocard",
            "badmoc",
        }
        details = await alpha.catalog.show("beta/nocard")
        assert details.card is None
        assert details.problem
        assert (await alpha.catalog.show("alpha/good")).card is not None


async def test_broken_manifest_of_another_island_is_malformed(tmp_path: Path) -> None:
    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        names: list[str] = []
        await beta.state.write(lambda conn: names.append(beta.gossip.blobs.put(conn, b"\x81\xa1x\x01")))

        async def linked() -> bool:
            return alpha.peers.link(beta.trust.me) is not None

        await until(alpha, linked)
        with pytest.raises(Malformed):
            await alpha.catalog.manifest(beta.trust.me, names[0])
        with pytest.raises(BadInput):
            await alpha.catalog.manifest(beta.trust.me, "../../etc/passwd")


async def test_two_datasets_with_one_name_are_distinguished(tmp_path: Path) -> None:
    from island.kernel.ids import key_prefix

    islands = Islands(tmp_path)
    async with islands.island("alpha") as alpha, islands.island("beta") as beta:
        for island, name in ((alpha, "stars"), (beta, "stars")):
            path = write_table(tmp_path / island.name / "data" / "a.parquet")
            await island.catalog.publish(WHO, path, name)
        await sees(alpha, 2)
        await named(alpha, beta)
        assert [view.dataset for view in await alpha.catalog.datasets()] == ["alpha/stars", "beta/stars"]
        key = beta.trust.me
        assert (await alpha.catalog.resolve(f"beta.{key_prefix(key)}/stars")).owner == key
        assert (await alpha.catalog.resolve(f"{key}/stars")).owner == key
