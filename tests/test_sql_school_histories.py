"""Whatever is written, in whatever order: once no event is left, the cached reports are true."""

import asyncio
import random

import asyncpg
import pytest
from histories import ARGUMENTS, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import drift
from school import School, found
from servers import Connect

FREQUENT = [*ARGUMENTS, *["record_feedback"] * 10, *["set_assignment", "join_group", "add_student", "add_group"] * 2]
"""Weighted, so that what is removed comes again and most of what happens is feedback."""


@given(data=st.data())
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_history_leaves_true_reports(db: asyncpg.Connection, data: st.DataObject) -> None:
    def draw(below: int) -> int:
        return data.draw(st.integers(0, below - 1))

    transaction = db.transaction()
    await transaction.start()
    try:
        school = await found(db)
        for _ in range(draw(30)):
            await write(school, draw, FREQUENT)
            if draw(4) == 0:
                await school.settle()
                assert await drift(db) == []
        await school.settle()
        assert await drift(db) == []
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("seed", range(3))
async def test_writers_at_the_same_time_leave_true_reports_and_never_deadlock(connect: Connect, seed: int) -> None:
    chance = random.Random(seed)
    school = await found(await connect(), pupils=4)
    daemon = School(await connect())

    async def writer(seed: int) -> None:
        own_chance = random.Random(seed)
        own = School(await connect())
        for _ in range(60):
            await write(own, own_chance.randrange, FREQUENT)

    async def keep_settling() -> None:
        while True:
            async with daemon.db.transaction():
                await daemon.settle()

    settling = asyncio.create_task(keep_settling())
    try:
        async with asyncio.TaskGroup() as writers:
            for _ in range(5):
                writers.create_task(writer(chance.random().as_integer_ratio()[0]))
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
    await school.settle()
    assert await drift(school.db) == []
