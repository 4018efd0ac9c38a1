"""BlockTableExplorer in a real Chromium, against the block manager whose books it shows."""

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from tests.browser.test_explorers import STEP, run
from tests.visualizations.explorers.test_allocation import film
from visualizations.explorers.block_table import BlockTableExplorer

PATH = "() => [...document.querySelectorAll('.nvx-card')].map(card => card.innerText)"


def path(page) -> str:
    return " | ".join(" ".join(card.split()) for card in page.evaluate(PATH))


def test_the_way_from_token_to_slot_is_the_trace_s_at_every_step(show):
    simulation = run()
    page = show(BlockTableExplorer(simulation.trace, seq_id=1))
    for step, record in enumerate(simulation.trace):
        page.locator(".nvx-scrub").fill(str(step))
        table = record.block_tables.get(1)
        if not table:
            assert "no slot" in path(page)
            continue
        position = record.context_lens[1] - 1  # the newest in the cache
        logical, offset = divmod(position, 4)
        owners = sum(table[logical] in other for other in record.block_tables.values())
        said = path(page)
        assert f"{logical}, offset {offset} {position} = {logical} × 4 + {offset}" in said
        assert f"slot {table[logical] * 4 + offset} {table[logical]} × 4 + {offset}" in said
        assert f"owners: {owners} references" in said if owners > 1 else "nobody else reads it" in said


def test_keys_choose_sequences_tokens_and_blocks(show):
    simulation = run()
    record = simulation.trace[4]
    page = show(BlockTableExplorer(simulation, step=4))
    page.focus(".nvx-scrub")
    for key, seq_id in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowDown", 0), ("ArrowUp", 2)):
        page.keyboard.press(key)
        assert path(page).startswith(f"sequence {seq_id} ")
    page.keyboard.press("Escape")
    newest = record.context_lens[0] - 1
    for key, position in (("Shift+ArrowLeft", newest - 1), ("Shift+ArrowUp", newest - 5), ("Shift+ArrowDown", newest - 1),
                          ("Shift+ArrowRight", newest)):
        page.keyboard.press(key)
        assert f"position {position}" in path(page) and page.evaluate(STEP) == 4
    block = record.block_tables[0][-1]
    page.keyboard.press(".")
    assert f"block_table[{record.block_tables[1].index(block + 1)}] = {block + 1}" in path(page)
    page.keyboard.press(",")
    assert f"= {block}" in path(page)


def test_clicks_choose_a_token_a_block_and_an_owner(show):
    manager, first, second = BlockManager(8, 4), Sequence(0, list(range(10))), Sequence(1, list(range(8)) + [50, 51])
    books = BlockTableExplorer(manager, [first, second])
    manager.append(first, 10)
    first.num_computed_tokens = 10
    manager.commit(first, 0)
    manager.allocate(second, manager.find_cached_prefix(second))
    manager.append(second, 10)
    books.refresh("the second finds two blocks of the first")
    page = show(books, width=1400)
    page.keyboard.press("Tab")
    page.locator(".nvx-scrub").fill("1")
    assert "the second finds two blocks" in page.inner_text(".nvx-root")

    cache = page.get_by_role("img", name="The cache")
    cache.click(position={"x": 20, "y": 20})  # block 0
    assert "physical block 0" in path(page) and "owners: 2 references" in path(page)
    page.locator(".nvx-bt-owners .nvx-chip").nth(1).click()
    assert path(page).startswith("sequence 1 ")
    tables = page.get_by_role("img", name="Block tables of 2 sequences")
    tables.click(position={"x": 128 + 2 * 34 + 10, "y": 16 + 34 + 10})  # the second's third entry
    assert "block_table[2] = 3" in path(page) and "nobody else reads it" in path(page)
    page.get_by_role("img", name="Tokens of sequence 1").click(position={"x": 10, "y": 25})
    assert "position 0 " in path(page) and "block_table[0] = 0" in path(page)
    page.get_by_role("img", name="Next to be reused").click(position={"x": 15, "y": 15})
    assert "physical block 4 free" in path(page) and "place 1 of 4" in path(page)


def test_a_cached_block_says_what_it_still_holds(show):
    simulation = run()
    last = len(simulation.trace) - 1
    block = simulation.eviction_orders[last][-1]
    assert simulation.trace[-1].blocks[block] == "c"
    page = show(BlockTableExplorer(simulation, step=last), width=700)
    page.focus(".nvx-scrub")
    for _ in range(block + 1):
        page.keyboard.press(".")
    assert f"physical block {block} cached" in path(page) and "it still holds “" in path(page)
    assert f"place {len(simulation.eviction_orders[last])} of {len(simulation.eviction_orders[last])}" in path(page)


def test_a_film_plays_by_itself_and_each_event_is_about_its_token(show):
    played = film()
    [copied] = played.copied_at
    page = show(played.explorer(step=len(played.books.says) - 1))
    pixels = "() => document.querySelector('.nvx-side canvas').toDataURL()"
    page.get_by_role("combobox").select_option("30")
    page.evaluate("""() => {
      const root = document.querySelector(".nvx-root");
      window.seen = [];
      new MutationObserver(() => window.seen.push(+root.dataset.step)).observe(root, { attributeFilter: ["data-step"] });
    }""")
    page.get_by_role("button", name="play", exact=True).click()  # at the end: from the start
    page.wait_for_function("n => window.seen.at(-1) === n", arg=len(played.books.says) - 1)
    page.wait_for_function("() => document.querySelector('.nvx-root').dataset.playing === 'false'")
    assert page.evaluate("() => [...new Set(window.seen)]") == list(range(len(played.books.says)))
    for step, says in enumerate(played.books.says):
        page.locator(".nvx-scrub").fill(str(step))
        assert says in page.inner_text(".nvx-root")
        if focus := played.books.focus.get(step):
            table = played.books.trace[step].block_tables[focus[0]]
            assert path(page).startswith(f"sequence {focus[0]} ") and f"position {focus[1]}" in path(page)
            assert f"block_table[{focus[1] // 4}] = {table[focus[1] // 4]}" in path(page)
    page.locator(".nvx-scrub").fill(str(copied))
    with_arrow = page.evaluate(pixels)
    played.books.copied.clear()
    plain = show(played.explorer(step=copied))
    assert plain.evaluate(pixels) != with_arrow, "an arrow shows the copy"
