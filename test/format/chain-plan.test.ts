import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { type PlannedRange, planChain, plannedEntries } from '../../lib/format/chain-plan.ts'
import { endOfEntry, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from '../../lib/format/pagemap.ts'
import { throwsFault } from '../expect.ts'
import { randomKinds } from '../support/random-layers.ts'

const test = suite('format/chain-plan')

const { parent, lazy, present } = pageFlag
const MOST_LAYERS = 8
const SPACE = 40

/** Page number, pages, flags. */
type Brief = [page: number, pages: number, flags: number]

function entries(...briefs: Brief[]): PagemapEntry[] {
  return briefs.map(([page, pages, flags]) => ({ vaddr: page * PAGE_BYTES, pages, flags }))
}

/** Layer, offset, page number, pages, flags. */
function brief({ layer, offset, vaddr, pages, flags }: PlannedRange): number[] {
  return [layer, offset, vaddr / PAGE_BYTES, pages, flags]
}

function flat(...layers: PagemapEntry[][]): number[][] {
  return [...planChain(layers)].map(brief)
}

const table: [what: string, layers: PagemapEntry[][], plan: number[][]][] = [
  ['nothing', [[]], []],
  ['no layer at all', [], []],
  [
    'a full dump',
    [entries([1, 2, present], [5, 1, present])],
    [
      [0, 0, 1, 2, 4],
      [0, 2, 5, 1, 4],
    ],
  ],
  ['neighbours become one', [entries([1, 2, present], [3, 1, present])], [[0, 0, 1, 3, 4]]],
  [
    'but not those of another kind',
    [entries([1, 2, present], [3, 1, 6])],
    [
      [0, 0, 1, 2, 4],
      [0, 2, 3, 1, 6],
    ],
  ],
  [
    'a page between two of the parent',
    [entries([1, 1, parent], [2, 1, present], [3, 2, parent]), entries([1, 4, present])],
    [
      [1, 0, 1, 1, 4],
      [0, 0, 2, 1, 4],
      [1, 2, 3, 2, 4],
    ],
  ],
  [
    'one run over several entries of the parent',
    [entries([0, 6, parent]), entries([0, 2, 6], [2, 1, present], [3, 3, present])],
    [
      [1, 0, 0, 2, 6],
      [1, 2, 2, 4, 4],
    ],
  ],
  ['a grandparent', [entries([7, 1, parent]), entries([6, 2, parent]), entries([6, 3, present])], [[2, 1, 7, 1, 4]]],
  [
    'what only the parent has is gone',
    [entries([5, 1, parent]), entries([1, 2, present], [5, 1, present], [9, 1, present])],
    [[1, 2, 5, 1, 4]],
  ],
  [
    'lazy pages without bytes stay so, and count for nothing in the pages image',
    [entries([0, 2, lazy], [2, 1, parent], [3, 1, present]), entries([0, 2, present], [2, 1, lazy], [3, 1, present])],
    [
      [0, 0, 0, 2, 2],
      [1, 2, 2, 1, 2],
      [0, 0, 3, 1, 4],
    ],
  ],
  [
    'a hole in one layer, present again below',
    [entries([0, 1, parent], [4, 1, parent]), entries([0, 1, present], [4, 1, parent]), entries([0, 9, present])],
    [
      [1, 0, 0, 1, 4],
      [2, 4, 4, 1, 4],
    ],
  ],
  [
    'neighbours from two layers stay two',
    [entries([0, 2, parent]), entries([0, 1, present], [1, 1, parent]), entries([1, 1, present])],
    [
      [1, 0, 0, 1, 4],
      [2, 0, 1, 1, 4],
    ],
  ],
]
for (const [what, layers, plan] of table) {
  test(what, () => {
    assert.equal(flat(...layers), plan)
  })
}

const lost: [what: string, layers: PagemapEntry[][], page: number][] = [
  ['no parent', [entries([3, 1, parent])], 3],
  ['an empty parent', [entries([3, 1, parent]), []], 3],
  ['a parent that begins behind it', [entries([3, 2, parent]), entries([4, 1, present])], 3],
  ['a parent that ends before it', [entries([3, 2, parent]), entries([1, 3, present])], 4],
  ['a gap in the parent', [entries([3, 3, parent]), entries([3, 1, present], [5, 1, present])], 4],
  ['a grandparent without it', [entries([3, 1, parent]), entries([3, 1, parent]), entries([4, 1, present])], 3],
]
for (const [what, layers, page] of lost) {
  test(`a page that is nowhere is MISSING, by its address: ${what}`, () => {
    const fault = throwsFault('MISSING', () => flat(...layers))
    assert.match(fault.message, `the page at 0x${(page * PAGE_BYTES).toString(16)} `)
    assert.ok(fault.hint)
  })
}

test('the pagemap of a plan joins what comes from different layers', () => {
  const layers = [
    entries([0, 3, parent], [3, 1, 6]),
    entries([0, 1, present], [1, 2, parent]),
    entries([0, 9, present]),
  ]
  assert.equal(
    [...plannedEntries(planChain(layers))].map(({ vaddr, pages, flags }) => [vaddr, pages, flags]),
    [
      [0, 3, 4],
      [3 * PAGE_BYTES, 1, 6],
    ],
  )
})

test('each layer is read once, as far as the plan was asked for', () => {
  const read = [0, 0]
  function* many(layer: number, flags: number): Generator<PagemapEntry> {
    for (let page = 0; ; page += 2) {
      read[layer] = (read[layer] ?? 0) + 1
      yield { vaddr: page * PAGE_BYTES, pages: 1, flags }
    }
  }
  const plan = planChain([many(0, parent), many(1, present)])
  for (let range = 0; range < 1000; range++) {
    assert.equal(brief(plan.next().value as PlannedRange), [1, range, range * 2, 1, present])
  }
  assert.equal(read, [1001, 1001])
})

test('a count that one entry cannot hold is not joined', () => {
  const half = 2 ** 31
  assert.equal(flat(entries([0, half, present], [half, half, present])).length, 2)
  assert.equal(flat(entries([0, half, present], [half, half - 1, present])), [[0, 0, 0, 2 ** 32 - 1, present]])
})

/** What a page is in one layer: `undefined` is none. Runs of one kind are cut into entries where `cuts` says so. */
interface RandomLayer {
  kinds: (number | undefined)[]
  cuts: boolean[]
}

const randomLayer = (oldest: boolean): fc.Arbitrary<RandomLayer> =>
  fc.record({
    kinds: randomKinds(oldest, SPACE),
    cuts: fc.array(fc.boolean(), { minLength: SPACE, maxLength: SPACE }),
  })

/** Layers above one that has everything find more, so some chains end in such a one. */
const fullLayer: RandomLayer = { kinds: Array(SPACE).fill(present), cuts: Array(SPACE).fill(false) }
const randomChain = fc
  .integer({ min: 1, max: MOST_LAYERS - 1 })
  .chain((count) =>
    fc.tuple(fc.tuple(...Array.from({ length: count }, (_, layer) => randomLayer(layer === count - 1))), fc.boolean()),
  )
  .map(([layers, full]) => (full ? [...layers, fullLayer] : layers))

function entriesOf({ kinds, cuts }: RandomLayer): PagemapEntry[] {
  const found: PagemapEntry[] = []
  kinds.forEach((flags, page) => {
    const last = found.at(-1)
    if (flags === undefined) return
    if (last?.flags === flags && endOfEntry(last) === page * PAGE_BYTES && cuts[page] !== true) last.pages++
    else found.push({ vaddr: page * PAGE_BYTES, pages: 1, flags })
  })
  return found
}

/** The model: each page by itself, as CRIU's restore looks it up. Page number to layer, offset, flags. */
function byPage(layers: readonly RandomLayer[]): Map<number, number[]> | number {
  const found = new Map<number, number[]>()
  for (let page = 0; page < SPACE; page++) {
    let layer = 0
    let kind = layers[0]?.kinds[page]
    if (kind === undefined) continue
    while ((kind & parent) !== 0) {
      layer++
      kind = layers[layer]?.kinds[page]
      if (kind === undefined) return page
    }
    const before = layers[layer]?.kinds.slice(0, page).filter((other) => other !== undefined && (other & present) !== 0)
    found.set(page, [layer, before?.length ?? 0, kind])
  }
  return found
}

test('random chains of up to eight layers: what a look at each page by itself finds', () => {
  let whole = 0
  let incomplete = 0
  fc.assert(
    fc.property(randomChain, (layers) => {
      const expected = byPage(layers)
      const maps = layers.map(entriesOf)
      if (typeof expected === 'number') {
        incomplete++
        const fault = throwsFault('MISSING', () => flat(...maps))
        assert.match(fault.message, `0x${(expected * PAGE_BYTES).toString(16)} `)
        return
      }
      whole++
      const plan = [...planChain(maps)]
      const pages = new Map<number, number[]>()
      for (const range of plan) {
        for (let n = 0; n < range.pages; n++) {
          const offset = range.offset + (presentPages(range) === 0 ? 0 : n)
          pages.set(range.vaddr / PAGE_BYTES + n, [range.layer, offset, range.flags])
        }
      }
      assert.equal([...pages], [...expected])
      plan.forEach((range, at) => {
        const last = plan[at - 1]
        if (last === undefined) return
        assert.ok(endOfEntry(last) <= range.vaddr, 'out of order')
        const follows = last.layer === range.layer && last.offset + presentPages(last) === range.offset
        assert.not(endOfEntry(last) === range.vaddr && last.flags === range.flags && follows, 'two ranges that are one')
      })
    }),
    { numRuns: 5000 },
  )
  assert.ok(whole > 1000 && incomplete > 500, `${whole} whole, ${incomplete} not`)
})

test('what a layer throws comes through', () => {
  function* broken(): Generator<PagemapEntry> {
    yield { vaddr: 0, pages: 1, flags: present }
    throw new Fault('FORMAT', 'damaged')
  }
  throwsFault('FORMAT', () => [...planChain([broken()])])
  throwsFault('FORMAT', () => [...planChain([entries([0, 1, parent], [4, 1, parent]), broken()])])
})

test.run()
