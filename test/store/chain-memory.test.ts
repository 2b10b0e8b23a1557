import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { pageFlag } from '../../lib/format/pagemap.ts'
import { ChainMemory } from '../../lib/store/chain-memory.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import { rejectsFault } from '../expect.ts'
import { type Brief, type Images, inventory, pagemap, pageOf, pagesOf, part, put } from '../support/rounds.ts'
import { run } from '../support/run.ts'

const test = suite('store/chain-memory')

const { parent, lazy, present } = pageFlag

/** Pages first, as a page server sends them: their pagemap is read as soon as it is here. */
function pagesFirst(images: Images): Images {
  return Object.fromEntries(Object.entries(images).reverse())
}

function chain(limit = 2 ** 30) {
  const pool = new Pool(limit)
  const sink = new MemorySnapshot(pool, true)
  const flat = new ChainMemory(sink)
  return {
    pool,
    sink,
    flat,
    async round(images: Images) {
      put(flat, images)
      sink.complete()
      await flat.round()
    },
    async last(images: Images) {
      put(flat, { ...images, 'inventory.img': inventory })
      sink.complete()
      await flat.last()
    },
  }
}

test('a full dump passes through, its pagemap written for every release', async () => {
  const { sink, last, pool } = chain()
  const images = part('only', [
    [1, 3, present],
    [9, 2, lazy],
  ])
  // As CRIU 4.2 writes a count.
  const newer = Buffer.from('1943565425400856' + '020000000801' + '0900000008802010002004' + '2803', 'hex')
  await last({ ...images, 'core-7.img': Buffer.from('core') })
  assert.equal([...sink.images.keys()], ['pagemap-7.img', 'pages-1.img', 'core-7.img', 'inventory.img'])
  assert.equal([...pagesOf(sink).keys()], [1, 2, 3, 9, 10])
  sink.drop()
  const other = chain()
  await other.last({ ...images, 'pagemap-7.img': newer })
  const [piece] = other.sink.images.get('pagemap-7.img' as never)?.pieces ?? []
  assert.ok(Buffer.from(piece?.window ?? []).equals(pagemap(1, [[1, 3, present]])))
  assert.is(pool.used, 0)
})

test('the last part has the pages of all rounds, each the newest, in order', async () => {
  const { sink, round, last, flat } = chain()
  await round(part('a', [[0, 10, present]]))
  await round(
    part('b', [
      [0, 2, parent],
      [2, 3, present],
      [5, 5, parent],
    ]),
  )
  await last(
    part('c', [
      [0, 3, parent],
      [3, 1, present],
      [4, 2, parent],
      [8, 1, parent],
      [20, 1, lazy],
    ]),
  )
  const check = (): void => {
    const pages = pagesOf(sink)
    assert.equal([...pages.keys()], [0, 1, 2, 3, 4, 5, 8, 20])
    const words = { 0: 'a', 1: 'a', 2: 'b', 3: 'c', 4: 'b', 5: 'a', 8: 'a' }
    for (const [number, word] of Object.entries(words)) {
      assert.equal(pages.get(Number(number)), pageOf(word, Number(number)), number)
    }
    assert.is(pages.get(20), 'lazy')
  }
  check()
  await flat.settle()
  check()
  for (const piece of sink.images.get('pages-1.img' as never)?.pieces ?? []) assert.ok(piece.pages)
  sink.drop()
})

test('a process that comes late, one that goes, and one whose pages image has another number', async () => {
  const { sink, round, last } = chain()
  const second = (images: Images): Images => ({
    'pagemap-8.img': images['pagemap-7.img'] as Buffer,
    'pages-2.img': images['pages-2.img'] as Buffer,
  })
  await round({ ...part('a', [[0, 4, present]]), ...second(part('x', [[0, 1, present]], 2)) })
  await round(part('b', [[0, 4, parent]], 5))
  await round({ ...part('c', [[0, 4, parent]], 9), ...second(part('y', [[0, 1, present]], 2)) })
  await last({ ...part('d', [[0, 3, parent]], 1), ...second(part('z', [[0, 1, parent]], 2)) })
  assert.equal(
    [...pagesOf(sink)].map(([, page]) => page),
    [0, 1, 2].map((at) => pageOf('a', at)),
  )
  assert.equal(pagesOf(sink, 'pagemap-8.img').get(0), pageOf('y', 0))
  sink.drop()
})

const refused: [
  what: string,
  code: 'FORMAT' | 'MISSING' | 'FAILED_DUMP' | 'LIMIT',
  message: RegExp,
  images: Images,
  ends?: 'last',
][] = [
  ['a page that no round has', 'MISSING', /^pagemap-7\.img: the page at 0x9000 is/, part('b', [[8, 2, parent]])],
  [
    'a page of a process that was not there',
    'MISSING',
    /^pagemap-9\.img: the page at 0x0 is/,
    { 'pagemap-9.img': pagemap(1, [[0, 1, parent]]) },
  ],
  [
    'fewer pages',
    'FORMAT',
    /^pagemap-7\.img: there are fewer/,
    { ...part('b', [[0, 2, present]]), 'pages-1.img': Buffer.alloc(4096) },
  ],
  [
    'more pages',
    'FORMAT',
    /^pagemap-7\.img: there are more/,
    { ...part('b', [[0, 2, present]]), 'pages-1.img': Buffer.alloc(3 * 4096) },
  ],
  ['no pages image', 'FORMAT', /^pagemap-7\.img: there are fewer/, { 'pagemap-7.img': pagemap(1, [[0, 2, present]]) }],
  [
    'pages of another size',
    'FORMAT',
    /pages-1\.img has 4097 bytes/,
    { ...part('b', [[0, 1, present]]), 'pages-1.img': Buffer.alloc(4097) },
  ],
  [
    'a pagemap that is cut',
    'FORMAT',
    /^pagemap-7\.img: a pagemap that is cut/,
    { 'pagemap-7.img': pagemap(1, [[0, 1, parent]]).subarray(0, -1) },
  ],
  ['another image', 'FORMAT', /^pagemap-7\.img: not a pagemap/, { 'pagemap-7.img': Buffer.alloc(100) }],
  [
    'two with the same pages',
    'FORMAT',
    /^pagemap-[78]\.img: its pages are in pages-1\.img/,
    { ...part('b', [[0, 1, present]]), 'pagemap-8.img': pagemap(1, [[0, 1, present]]) },
  ],
  [
    'images that are not understood',
    'FORMAT',
    /images of version 3/,
    { 'inventory.img': Buffer.from('16313158020000000803', 'hex') },
  ],
  ['an inventory that is none', 'LIMIT', /inventory\.img of 65537 bytes/, { 'inventory.img': Buffer.alloc(65_537) }],
]
for (const [what, code, message, images] of refused) {
  for (const [ends, order] of [
    ['round', (images: Images) => images],
    ['last', pagesFirst],
  ] as const) {
    test(`${what} in the ${ends} is ${code}`, async () => {
      const { sink, flat, round, pool } = chain()
      await round(part('a', [[0, 9, present]]))
      put(flat, order(ends === 'round' ? images : { 'inventory.img': inventory, ...images }))
      sink.complete()
      assert.match((await rejectsFault(code, flat[ends]())).message, message)
      sink.drop()
      assert.is(pool.used, 0)
    })
  }
}

test('a pagemap is read while other images come, and an error in it is thrown at the end', async () => {
  const { sink, flat, round, pool } = chain()
  await round(part('a', [[0, 9, present]]))
  put(flat, pagesFirst(part('b', [[8, 2, parent]])))
  await turn()
  put(flat, { 'core-7.img': Buffer.from('core') })
  sink.complete()
  await rejectsFault('MISSING', flat.round())
  sink.drop()
  assert.is(pool.used, 0)
})

test('a pre-dump ends no chain', async () => {
  const { sink, flat, round } = chain()
  const preDump = { 'inventory.img': Buffer.from('16313158040000000802' + '4801', 'hex') }
  await round({ ...part('a', [[0, 1, present]]), ...preDump })
  put(sink, { ...part('b', [[0, 1, parent]]), ...preDump })
  await rejectsFault('FAILED_DUMP', flat.last())
  sink.drop()
})

test('pages that are replaced, unmapped or of a process that is gone go back at once; whole extents too', async () => {
  const { sink, pool, round, last, flat } = chain()
  const pages = (4 * EXTENT) / 4096
  await round(part('a', [[0, pages, present]]))
  const least = pages * 4096
  assert.ok(pool.used >= least && pool.used <= least + EXTENT, `${pool.used}`)
  // Every second page anew: no huge page is left whole.
  const half: Brief[] = Array.from({ length: pages }, (_, at) => [at, 1, at % 2 === 0 ? present : parent])
  await round(part('b', half))
  const noted = 25 * pages
  assert.ok(pool.used >= least && pool.used <= least + EXTENT + noted, `${pool.used}`)
  assert.is(sink.held, pool.used)
  await round(part('c', [[0, pages / 2, parent]]))
  assert.ok(pool.used >= least / 2 && pool.used <= least / 2 + EXTENT + noted, `${pool.used}`)
  await last(part('d', [[0, 10, parent]]))
  assert.ok(pool.used >= least / 2, 'not while the tasks are frozen')
  await flat.settle()
  assert.ok(pool.used <= EXTENT + 10 * 4096, `${pool.used}`)
  const found = pagesOf(sink)
  for (let at = 0; at < 10; at++) assert.equal(found.get(at), pageOf(at % 2 === 0 ? 'b' : 'a', at))
  sink.drop()
  assert.is(pool.used, 0)
})

test('images of rounds that are not pages leave nothing behind, however many there are', async () => {
  const { sink, pool, round } = chain()
  for (let at = 0; at < 20; at++) {
    const small = Array.from({ length: 50 }, (_, n): [string, Buffer] => [`core-${n}.img`, Buffer.alloc(70_000, at)])
    await round({ ...part(`${at}`, [[at, 1, present]]), ...Object.fromEntries(small) })
    assert.ok(pool.used <= 2 * EXTENT, `${pool.used}`)
  }
  sink.drop()
  assert.is(pool.used, 0)
})

test('many small rounds do not keep an extent each', async () => {
  const { sink, pool, round } = chain()
  for (let at = 0; at < 30; at++) {
    await round(
      part(
        `${at}`,
        at === 0
          ? [[0, 600, present]]
          : [
              [0, 300, present],
              [300, 300, parent],
            ],
      ),
    )
  }
  assert.ok(pool.used <= 600 * 4096 + 2 * EXTENT, `${pool.used}`)
  sink.drop()
})

test('a page of a flattened snapshot is given back once, by itself', async () => {
  const { sink, pool, round, last, flat } = chain()
  await round(part('a', [[0, 1000, present]]))
  await last(
    part(
      'b',
      Array.from({ length: 1000 }, (_, at) => [at, 1, at % 3 === 0 ? present : parent]),
    ),
  )
  await flat.settle()
  const before = pool.used
  const pieces = [...(sink.images.get('pages-1.img' as never)?.pieces ?? [])]
  assert.ok(pieces.length > 600)
  const [first, second] = pieces
  assert.ok(first !== undefined && second !== undefined)
  sink.release(first)
  assert.is(pool.used, before - first.window.length)
  sink.release(first)
  assert.is(pool.used, before - first.window.length, 'once')
  assert.is(first.window[0], 0)
  assert.equal(Buffer.from(second.window.subarray(0, 4096)), pageOf('a', 1))
  for (const piece of pieces) sink.release(piece)
  assert.is(pool.used, before - 1000 * 4096)
  assert.is(sink.images.get('inventory.img' as never)?.size, inventory.length)
  sink.drop()
  assert.is(pool.used, 0)
})

test('the runs of pages that no image has are charged, too, and given back', async () => {
  const lazies = (count: number): Images =>
    part(
      'none',
      Array.from({ length: count }, (_, at): Brief => [2 * at, 1, lazy]),
    )
  const { pool, sink, flat, round } = chain(16 * EXTENT)
  await round(lazies(2 ** 15))
  const used = pool.used
  assert.ok(used >= EXTENT + 2 ** 15 * 20, `${used}`)
  assert.is(sink.held, used)
  await round(lazies(2 ** 15))
  assert.is(pool.used, used, 'that of the round before is back')
  await round(lazies(10))
  assert.ok(pool.used < EXTENT + 2 ** 14, `${pool.used}`)
  put(flat, lazies(2 ** 19))
  sink.complete()
  await rejectsFault('MEMORY', flat.round())
  sink.drop()
  assert.is(pool.used, 0)
})

const kinds = fc.constantFrom(undefined, present, present, lazy, parent, parent, parent)
const randomParts = fc.array(fc.array(kinds, { minLength: 30, maxLength: 30 }), { minLength: 1, maxLength: 8 })

test('random chains of up to eight parts have every page as in their parts, in bounded memory', async () => {
  const pool = new Pool(2 ** 26)
  await fc.assert(
    fc.asyncProperty(randomParts, async (parts) => {
      const sink = new MemorySnapshot(pool, true)
      const flat = new ChainMemory(sink)
      let model = new Map<number, Buffer | 'lazy'>()
      for (const [number, kindsOf] of parts.entries()) {
        const briefs: Brief[] = []
        const next = new Map<number, Buffer | 'lazy'>()
        kindsOf.forEach((kind, at) => {
          if (kind === undefined || (kind === parent && !model.has(at))) return
          briefs.push([at, 1, kind])
          const own = kind === lazy ? 'lazy' : pageOf(`${number}`, at)
          next.set(at, kind === parent ? (model.get(at) as Buffer) : own)
        })
        const ends = number === parts.length - 1
        const images = { ...part(`${number}`, briefs), ...(ends && { 'inventory.img': inventory }) }
        put(flat, number % 2 === 0 ? pagesFirst(images) : images)
        sink.complete()
        await (ends ? flat.last() : flat.round())
        model = next
      }
      assert.equal([...pagesOf(sink)], [...model])
      await flat.settle()
      assert.equal([...pagesOf(sink)], [...model])
      assert.ok(sink.held <= 2 * EXTENT + 30 * 4096, `${sink.held}`)
      sink.drop()
      assert.is(pool.used, 0)
    }),
    { numRuns: 1000 },
  )
})

test('ten rounds take the memory of the process and of one round, as the system counts it', async () => {
  const program = join(import.meta.dirname, 'chains-in-memory.ts')
  const { code, stdout, stderr } = await run(process.execPath, ['--import', 'tsx', program])
  assert.is(code, 0, stderr)
  const { process: bytes, round, used, resident, most, mostResident } = JSON.parse(stdout.toString())
  assert.ok(used <= bytes * 1.1, `${used} in the pool for ${bytes}`)
  assert.ok(resident <= bytes * 1.1, `${resident} resident for ${bytes}`)
  assert.ok(most <= bytes * 1.1 + round, `at most ${most} in the pool for ${bytes} and ${round}`)
  assert.ok(mostResident <= bytes * 1.1 + round, `at most ${mostResident} resident for ${bytes} and ${round}`)
  assert.ok(resident >= bytes, `${resident} resident for ${bytes}: it is not what was measured`)
})

test.run()
