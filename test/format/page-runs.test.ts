import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { planChain } from '../../lib/format/chain-plan.ts'
import { entriesOf, overlay, pageRunsOf, type Range, type Runs, rangesOf } from '../../lib/format/page-runs.ts'
import { endOfEntry, PAGE_BYTES, type PagemapEntry, pageFlag, presentPages } from '../../lib/format/pagemap.ts'
import { throwsFault } from '../expect.ts'
import { randomKinds } from '../support/random-layers.ts'

const test = suite('format/page-runs')

const { parent, lazy, present } = pageFlag
const SPACE = 40
const MOST_LAYERS = 8
/** Where a layer's pages begin; pieces of it have a hole between them. */
const FAR = 2 ** 40

function finish<Result>(work: Generator<unknown, Result>): Result {
  for (;;) {
    const step = work.next()
    if (step.done === true) return step.value
  }
}

/** Page number, pages, flags. */
type Brief = [page: number, pages: number, flags: number]
const entries = (...briefs: Brief[]): PagemapEntry[] =>
  briefs.map(([page, pages, flags]) => ({ vaddr: page * PAGE_BYTES, pages, flags }))

function layer(briefs: Brief[], ...ranges: Range[]): Runs {
  return finish(pageRunsOf([entries(...briefs)], ranges))
}

/** Page number, pages, flags, page number of the address. */
function rows({ count, vaddr, pages, flags, address }: Runs): number[][] {
  return Array.from({ length: count }, (_, at) => [
    (vaddr[at] ?? 0) / PAGE_BYTES,
    pages[at] ?? 0,
    flags[at] ?? 0,
    (address[at] ?? 0) / PAGE_BYTES,
  ])
}

const page = (number: number): number => number * PAGE_BYTES

test('pages lie where the pieces of their image are, one behind the other', () => {
  const runs = layer(
    [
      [1, 3, present],
      [5, 1, parent],
      [7, 4, present | lazy],
      [20, 9, lazy],
    ],
    [page(100), 2],
    [page(200), 5],
  )
  assert.equal(rows(runs), [
    [1, 2, 4, 100],
    [3, 1, 4, 200],
    [5, 1, 1, 0],
    [7, 4, 6, 201],
    [20, 9, 2, 0],
  ])
})

test('fewer pages than a pagemap says, or more, are FORMAT', () => {
  const brief: Brief[] = [[1, 3, present]]
  assert.match(throwsFault('FORMAT', () => layer(brief, [page(9), 2])).message, 'fewer pages')
  assert.match(throwsFault('FORMAT', () => layer(brief)).message, 'fewer pages')
  assert.match(throwsFault('FORMAT', () => layer(brief, [page(9), 4])).message, 'more pages')
  assert.match(throwsFault('FORMAT', () => layer(brief, [page(9), 3], [page(19), 1])).message, 'more pages')
  assert.is(layer([]).count, 0)
})

test('what a page covers, and what is not there any more, is unused', () => {
  const older = layer(
    [
      [0, 4, present],
      [6, 2, present],
      [9, 1, lazy],
      [12, 1, present],
    ],
    [page(100), 7],
  )
  const newer = layer(
    [
      [0, 1, parent],
      [1, 1, present],
      [2, 2, parent],
      [7, 1, parent],
      [9, 1, parent],
    ],
    [page(50), 1],
  )
  const unused: number[][] = []
  const merged = finish(overlay(newer, older, (address, pages) => unused.push([address / PAGE_BYTES, pages])))
  assert.equal(rows(merged), [
    [0, 1, 4, 100],
    [1, 1, 4, 50],
    [2, 2, 4, 102],
    [7, 1, 4, 105],
    [9, 1, 2, 0],
  ])
  assert.equal(unused, [
    [101, 1],
    [104, 1],
    [106, 1],
  ])
  assert.equal([...entriesOf(merged)], entries([0, 4, present], [7, 1, present], [9, 1, lazy]))
})

test('a page that no round has is MISSING, by its address', () => {
  const newer = layer([[3, 3, parent]])
  const lost: [older: Runs | undefined, at: number][] = [
    [undefined, 3],
    [layer([]), 3],
    [layer([[4, 2, present]], [page(9), 2]), 3],
    [layer([[1, 3, present]], [page(9), 3]), 4],
    [
      layer(
        [
          [3, 1, present],
          [5, 1, present],
        ],
        [page(9), 2],
      ),
      4,
    ],
  ]
  for (const [older, at] of lost) {
    const fault = throwsFault('MISSING', () => finish(overlay(newer, older, () => {})))
    assert.match(fault.message, `the page at 0x${page(at).toString(16)} `)
    assert.ok(fault.hint)
  }
})

test('ranges end where an extent does', () => {
  const runs = layer(
    [
      [0, 3, present],
      [5, 3, present],
    ],
    [page(6), 2],
    [page(8), 4],
  )
  assert.equal(
    [...rangesOf(runs, page(8))],
    [
      [page(6), 2],
      [page(8), 4],
    ],
  )
})

test('what entries throw comes through', () => {
  function* broken(): Generator<PagemapEntry[]> {
    yield entries([0, 1, parent])
    throw new Fault('LIMIT', 'damaged')
  }
  throwsFault('LIMIT', () => finish(pageRunsOf(broken(), [])))
})

/** What each page is in a layer, where its runs are cut into entries, and how its pages are cut into pieces. */
interface RandomLayer {
  kinds: (number | undefined)[]
  cuts: boolean[]
  pieces: boolean[]
}

const booleans = fc.array(fc.boolean(), { minLength: SPACE, maxLength: SPACE })
const randomLayer = (oldest: boolean): fc.Arbitrary<RandomLayer> =>
  fc.record({
    kinds: randomKinds(oldest, SPACE),
    cuts: booleans,
    pieces: booleans,
  })
const randomChain = fc
  .integer({ min: 1, max: MOST_LAYERS })
  .chain((count) => fc.tuple(...Array.from({ length: count }, (_, at) => randomLayer(at === 0))))

/** A parent page that is not below makes a chain end early: mostly it is another kind. */
function mended(kinds: (number | undefined)[], below: Map<number, Page> | undefined): (number | undefined)[] {
  return kinds.map((kind, at) => (kind !== undefined && (kind & parent) !== 0 && !below?.has(at) ? present : kind))
}

function entriesOfKinds({ cuts }: RandomLayer, kinds: (number | undefined)[]): PagemapEntry[] {
  const found: PagemapEntry[] = []
  kinds.forEach((flags, at) => {
    const last = found.at(-1)
    if (flags === undefined) return
    if (last?.flags === flags && endOfEntry(last) === page(at) && cuts[at] !== true) last.pages++
    else found.push({ vaddr: page(at), pages: 1, flags })
  })
  return found
}

/** A page of a plan: where it lies and its flags. */
type Page = [address: number, flags: number]

/** Where each page of a layer's image lies, and the same as ranges. */
function addressesOf(number: number, pages: number, cuts: boolean[]): { addresses: number[]; ranges: Range[] } {
  const addresses: number[] = []
  const ranges: Range[] = []
  let at = (number + 1) * FAR
  for (let n = 0; n < pages; n++) {
    const last = ranges.at(-1)
    if (last === undefined || cuts[n] === true) {
      at += 3 * PAGE_BYTES
      ranges.push([at, 1])
    } else last[1]++
    addresses.push(at)
    at += PAGE_BYTES
  }
  return { addresses, ranges }
}

function byPage({ count, vaddr, pages, flags, address }: Runs): Map<number, Page> {
  const found = new Map<number, Page>()
  for (let at = 0; at < count; at++) {
    for (let n = 0; n < (pages[at] ?? 0); n++) {
      const where = address[at] === 0 ? 0 : (address[at] ?? 0) + page(n)
      found.set((vaddr[at] ?? 0) / PAGE_BYTES + n, [where, flags[at] ?? 0])
    }
  }
  return found
}

test('random chains of up to eight layers: each page is found as alone, and none that is needed is given back', () => {
  let deep = 0
  let given = 0
  let broken = 0
  fc.assert(
    fc.property(randomChain, fc.nat(99), (layers, luck) => {
      let runs: Runs | undefined
      let model: Map<number, Page> | undefined
      const gone = new Set<number>()
      const whole: { entries: PagemapEntry[]; addresses: number[] }[] = []
      for (const [number, random] of layers.entries()) {
        const kinds = luck < 90 ? mended(random.kinds, model) : random.kinds
        const list = entriesOfKinds(random, kinds)
        const { addresses, ranges } = addressesOf(
          number,
          list.reduce((sum, entry) => sum + presentPages(entry), 0),
          random.pieces,
        )
        const next = new Map<number, Page>()
        let lost: number | undefined
        let used = 0
        kinds.forEach((kind, at) => {
          if (kind === undefined || lost !== undefined) return
          if ((kind & parent) === 0) next.set(at, [(kind & present) === 0 ? 0 : (addresses[used++] ?? 0), kind])
          else if (model?.has(at) === true) next.set(at, model.get(at) as Page)
          else lost = at
        })
        const own = finish(pageRunsOf([list], ranges))
        if (lost !== undefined) {
          broken++
          const fault = throwsFault('MISSING', () => finish(overlay(own, runs, () => {})))
          assert.match(fault.message, `0x${page(lost).toString(16)} `)
          return
        }
        const freed: number[] = []
        const merged = finish(
          overlay(own, runs, (address, pages) => {
            for (let n = 0; n < pages; n++) freed.push(address + page(n))
          }),
        )
        assert.equal([...byPage(merged)], [...next])
        const needed = new Set([...next.values()].map(([address]) => address))
        for (const address of needed) assert.not(gone.has(address), 'needed, and given back before')
        const before = [...(model?.values() ?? [])].map(([address]) => address).filter((address) => address !== 0)
        assert.equal(
          freed,
          before.filter((address) => !needed.has(address)),
          'just what is not needed',
        )
        for (const address of freed) gone.add(address)
        given += freed.length
        whole.push({ entries: list, addresses })
        runs = merged
        model = next
      }
      if (layers.length === MOST_LAYERS) deep++
      // The plan that is made of all layers at once.
      const newest = whole.reverse()
      const plan = new Map<number, Page>()
      for (const range of planChain(newest.map((one) => one.entries))) {
        for (let n = 0; n < range.pages; n++) {
          const has = presentPages(range) > 0
          const address = has ? (newest[range.layer]?.addresses[range.offset + n] ?? 0) : 0
          plan.set(range.vaddr / PAGE_BYTES + n, [address, range.flags])
        }
      }
      assert.equal([...(model ?? [])], [...plan])
      const list = runs === undefined ? [] : [...entriesOf(runs)]
      list.forEach((entry, at) => {
        const last = list[at - 1]
        if (last !== undefined)
          assert.not(endOfEntry(last) === entry.vaddr && last.flags === entry.flags, 'two that are one')
      })
      const lies = runs === undefined ? [] : [...rangesOf(runs, page(16))]
      const pages = lies.flatMap(([address, count]) => Array.from({ length: count }, (_, n) => address + page(n)))
      assert.equal(
        pages,
        [...plan.values()].map(([address]) => address).filter((address) => address !== 0),
      )
    }),
    { numRuns: 4000 },
  )
  assert.ok(deep > 200 && given > 10_000 && broken > 100, `${deep} deep, ${given} given back, ${broken} broken`)
})

test.run()
