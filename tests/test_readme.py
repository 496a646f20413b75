"""What the README tells a newcomer to type does what the README says."""

import re
from pathlib import Path

import asyncpg
from click.testing import CliRunner
from engine import enqueue, failures, impatient, on_duty, until_empty

from cli import main
from daemon.backfill import Backfiller
from daemon.keys import find_topic
from daemon.settings import Settings
from daemon.verify import Verifier

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SHOP = """
    create schema shop;
    create table shop.order_line (order_id bigint, line integer, quantity integer, unit_price numeric);
    create table shop.order_total (order_id bigint primary key, total numeric);
    insert into shop.order_line values (42, 1, 2, 10), (42, 2, 1, 5), (43, 1, 1, 7);
"""


def sql_blocks() -> list[str]:
    return [re.sub(r"(?m)^ {3}", "", block) for block in re.findall(r"(?s)```sql\n(.*?)```", README)]


def the_block_with(text: str) -> str:
    (block,) = [each for each in sql_blocks() if text in each]
    return block


async def test_ones_own_table_works_as_the_readme_shows(db: asyncpg.Connection) -> None:
    await db.execute(SHOP)
    await db.execute(the_block_with("create procedure shop.recalculate_order_totals"))
    await db.execute(the_block_with("create function shop.describe_order"))
    await db.execute(the_block_with("select outbox.set_topic"))
    topic = await find_topic(db, "shop.order")

    tally = await Backfiller(db, topic).run()
    assert (tally.done_count, tally.changed_count) == (2, 2)
    totals = await db.fetch("select order_id, total from shop.order_total order by 1")
    assert [tuple(row) for row in totals] == [(42, 25), (43, 7)]

    await db.execute(the_block_with("begin;\nupdate shop.order_line set quantity = 3"))
    assert (await Verifier(db, topic).run()).drifted == []  # pending, so late: not drifted
    assert (await Backfiller(db, topic).run(["42"])).changed_count == 1
    assert await db.fetchval("select total from shop.order_total where order_id = 42") == 35
    assert await db.fetchval("select count(*) from outbox.event") == 0

    await db.execute("update shop.order_total set total = 99 where order_id = 43")
    (difference,) = (await Verifier(db, topic).run()).differences["43"]
    assert (difference.path, difference.cached, difference.true) == (("total",), 99, 7)

    await db.execute("delete from shop.order_line where order_id = 42")
    assert (await Verifier(db, topic).run()).drifted == ["42", "43"]


async def test_a_daemon_may_call_ones_own_procedure_after_the_grants_of_the_readme(
    db: asyncpg.Connection, settings: Settings
) -> None:
    await db.execute(SHOP)
    await db.execute(the_block_with("create procedure shop.recalculate_order_totals"))
    await db.execute(the_block_with("create function shop.describe_order"))
    await db.execute(the_block_with("select outbox.set_topic"))
    await db.execute(the_block_with("grant usage on schema shop"))
    async with on_duty(impatient(settings)):
        await enqueue(db, "shop.order", "42", "43")
        await until_empty(db)
    assert await db.fetchval("select array_agg(total order by order_id) from shop.order_total") == [25, 7]
    assert await failures(db) == {}


def test_every_command_of_the_readme_exists_and_no_command_is_missing_there() -> None:
    named = set(re.findall(r"^\| `recalcd ([a-z]+)", README, re.MULTILINE))
    assert named == set(main.commands)
    for name in named:
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
