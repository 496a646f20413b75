import asyncio, pytest
@pytest.mark.parametrize("n", range(4))
async def test_long(db, n): 
    await db.execute("select pg_sleep(60)")
