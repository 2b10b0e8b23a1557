import {
  closeSync,
  cpSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodePagemap, PAGE_BYTES, type PagemapEntry, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import { chainOf, flatImages } from '../../lib/store/directory-chain.ts'
import { directorySource } from '../../lib/store/directory-stage.ts'
import { reasonOf, rejectsFault, throwsFault } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { chains, pagemapOf, pagesByAddress, splitDump, type Writing } from '../support/chains.ts'
import { fixtures, temporary } from '../support/run.ts'

const test = suite<{ dir: string; remove: () => void }>('store/directory-chain')

test.before.each((context) => {
  const { path, remove } = temporary()
  context.dir = path
  context.remove = remove
})
test.after.each((context) => context.remove())

const { parent, lazy, present } = pageFlag

/** Writes the flattened images of a chain into a directory. */
async function write(from: string, to: string): Promise<string[]> {
  mkdirSync(to)
  const names: string[] = []
  for (const { name, body } of flatImages(chainOf(from))) {
    const pieces: Uint8Array[] = []
    for await (const piece of body.pieces) pieces.push(Buffer.from(piece))
    writeFileSync(join(to, name), Buffer.concat(pieces), { flag: 'wx' })
    names.push(name)
  }
  return names
}

const pagemaps = (directory: string): string[] => readdirSync(directory).filter((name) => name.startsWith('pagemap-'))

/** Asserts that both have the same images, and that each page of the chain is the same as by a look at it alone. */
function equalPages(flat: string, chain: string): number {
  let pages = 0
  assert.equal(
    readdirSync(flat).sort(),
    readdirSync(chain)
      .filter((name) => name.endsWith('.img'))
      .sort(),
  )
  for (const name of pagemaps(chain)) {
    const expected = pagesByAddress(chain, name)
    const found = pagesByAddress(flat, name)
    assert.equal([...found.keys()], [...expected.keys()], name)
    for (const [vaddr, page] of expected) {
      const same = page instanceof Buffer ? page.equals(found.get(vaddr) as Buffer) : found.get(vaddr) === page
      assert.ok(same, `${name}: the page at ${vaddr}`)
    }
    pages += expected.size
  }
  return pages
}

for (const { criu, directories } of chains()) {
  test(`three pre-dumps and a dump of CRIU ${criu}, flattened: every page is as a look at it alone finds it`, async ({
    dir,
  }) => {
    const [, , , last = ''] = directories
    const before = openFds()
    assert.equal(chainOf(last), [...directories].reverse())
    const names = await write(last, join(dir, 'flat'))
    assert.is(names.at(-1), 'inventory.img')
    const pages = equalPages(join(dir, 'flat'), last)
    assert.ok(pages > 140, `${pages} pages`)
    for (const name of names.filter((image) => !/^page/.test(image))) {
      assert.ok(readFileSync(join(dir, 'flat', name)).equals(readFileSync(join(last, name))), name)
    }
    // It is a real chain: most pages are in parents of more than one age, and newer pages replace older ones.
    const from = new Set<string>()
    for (const name of pagemaps(last)) {
      for (const { flags } of readPagemap([readFileSync(join(last, name))]).entries) {
        if ((flags & parent) !== 0) from.add(name)
      }
      const flat = readFileSync(join(dir, 'flat', name))
      const { pagesId, entries } = readPagemap([flat])
      const all = [...entries]
      assert.ok(
        all.every(({ flags }) => (flags & present) !== 0),
        name,
      )
      assert.ok(Buffer.concat([...encodePagemap(pagesId, all)]).equals(flat), `${name} is for every release`)
    }
    assert.is(from.size, 2, 'two processes have pages in a parent, their shared memory has none')
    assert.is(openFds(), before, 'a descriptor is left')
  })
}

test('chains of up to eight layers, as each release writes them: each page is the newest', async ({ dir }) => {
  const writings: Writing[][] = [
    ['4.2'],
    ['4.1', '4.2'],
    ['4.2', '4.1', 'before flags'],
    ['4.2', '4.2', '4.1', '4.1', 'before flags', 'before flags', '4.1', '4.2'],
  ]
  const shared = join(dir, 'shared')
  await write(chains()[1]?.directories.at(-1) ?? '', shared)
  for (const [seed, layers] of writings.entries()) {
    for (const [full, pages] of [
      [join(fixtures, 'images'), 28],
      [shared, 150],
    ] as const) {
      const place = join(dir, `${seed}-${pages}`)
      const last = splitDump(full, place, layers, seed)
      assert.is(chainOf(last).length, layers.length)
      await write(last, join(place, 'flat'))
      assert.ok(equalPages(join(place, 'flat'), last) >= pages)
      assert.ok(equalPages(join(place, 'flat'), full) >= pages)
    }
  }
})

test('a parent may be a directory or an absolute link, and the directories may be moved together', async ({ dir }) => {
  const last = splitDump(join(fixtures, 'images'), join(dir, 'a'), ['4.2', '4.1', '4.1'])
  cpSync(join(dir, 'a', '1'), join(dir, 'whole', 'parent', 'parent'), { recursive: true })
  for (const [from, to] of [
    ['2', join('whole', 'parent')],
    ['3', 'whole'],
  ] as const) {
    for (const name of readdirSync(join(dir, 'a', from)).filter((file) => file !== 'parent')) {
      cpSync(join(dir, 'a', from, name), join(dir, to, name))
    }
  }
  assert.is(chainOf(join(dir, 'whole')).length, 3)
  await write(join(dir, 'whole'), join(dir, 'flat-1'))
  equalPages(join(dir, 'flat-1'), last)
  renameSync(join(dir, 'a'), join(dir, 'b'))
  await write(join(dir, 'b', '3'), join(dir, 'flat-2'))
  equalPages(join(dir, 'flat-2'), join(dir, 'whole'))
  mkdirSync(join(dir, 'far', 'away'), { recursive: true })
  symlinkSync('../../b/3', join(dir, 'far', 'away', 'latest'))
  assert.equal(
    chainOf(join(dir, 'far', 'away', 'latest')).slice(1),
    ['2', '1'].map((round) => join(dir, 'b', round)),
  )
  rmSync(join(dir, 'b', '3', 'parent'))
  symlinkSync(join(dir, 'b', '2'), join(dir, 'b', '3', 'parent'))
  assert.equal(
    chainOf(join(dir, 'b', '3')),
    ['3', '2', '1'].map((round) => join(dir, 'b', round)),
  )
})

test('the error for a parent that leads nowhere, or in a circle, has its path', ({ dir }) => {
  for (const name of ['1', '2', '3']) mkdirSync(join(dir, name))
  symlinkSync('../gone', join(dir, '1', 'parent'))
  symlinkSync('../1', join(dir, '2', 'parent'))
  const nowhere = throwsFault('MISSING', () => chainOf(join(dir, '2')))
  assert.match(nowhere.message, /^the parent of .*\/1, \.\.\/gone, cannot be read \(ENOENT\)$/)
  assert.ok(nowhere.hint)
  writeFileSync(join(dir, 'gone'), '')
  assert.match(throwsFault('MISSING', () => chainOf(join(dir, '2'))).message, /\/gone is not a directory$/)
  rmSync(join(dir, '1', 'parent'))
  symlinkSync('../2', join(dir, '1', 'parent'))
  assert.match(throwsFault('FORMAT', () => chainOf(join(dir, '1'))).message, /lead in a circle: .*\/1 comes twice/)
  symlinkSync('parent', join(dir, '3', 'parent'))
  assert.match(throwsFault('MISSING', () => chainOf(join(dir, '3'))).message, 'ELOOP')
  throwsFault('MISSING', () => chainOf(join(dir, 'none')))
})

test('a chain that cannot be flattened is refused before the first image', ({ dir }) => {
  const [recorded] = chains()
  const [first = '', , , last = ''] = recorded?.directories ?? []
  const preDump = throwsFault('FAILED_DUMP', () => flatImages(chainOf(first)))
  assert.match(preDump.message, /\/1 is a pre-dump/)
  mkdirSync(join(dir, 'empty'))
  throwsFault('FAILED_DUMP', () => flatImages([join(dir, 'empty')]))
  cpSync(last, join(dir, '4'), { recursive: true, verbatimSymlinks: true })
  mkdirSync(join(dir, '3'))
  writeFileSync(join(dir, '3', 'inventory.img'), Buffer.from('16313158020000000803', 'hex'))
  const newer = throwsFault('FORMAT', () => flatImages(chainOf(join(dir, '4'))))
  assert.match(newer.message, /\/3\/inventory\.img: images of version 3/)
})

/** A directory with one pagemap, its pages of one byte each repeated, and an inventory. */
function layer(directory: string, entries: PagemapEntry[], byte: number, writing: Writing = '4.2'): void {
  const pages = entries.reduce((sum, { pages, flags }) => sum + ((flags & present) === 0 ? 0 : pages), 0)
  mkdirSync(directory)
  writeFileSync(join(directory, 'pagemap-7.img'), pagemapOf(writing, 1, entries))
  writeFileSync(join(directory, 'pages-1.img'), Buffer.alloc(pages * PAGE_BYTES, byte))
  cpSync(join(fixtures, 'images', 'inventory.img'), join(directory, 'inventory.img'))
}

const at = (page: number, pages: number, flags: number): PagemapEntry => ({ vaddr: page * PAGE_BYTES, pages, flags })

/** Two layers: the parent has two pages of `b`, the dump has one of `a` between them. */
function twoLayers(dir: string): string {
  layer(join(dir, '1'), [at(1, 1, present), at(3, 1, present)], 0x62)
  layer(join(dir, '2'), [at(1, 1, parent), at(2, 1, present), at(3, 1, parent)], 0x61)
  symlinkSync('../1', join(dir, '2', 'parent'))
  return join(dir, '2')
}

test('lazy pages without bytes stay lazy, and a page server that left no inventory is a parent too', async ({
  dir,
}) => {
  const last = twoLayers(dir)
  rmSync(join(dir, '1', 'inventory.img'))
  const map = pagemapOf('4.1', 1, [at(1, 1, parent), at(2, 1, present), at(3, 1, parent), at(9, 4, lazy)])
  writeFileSync(join(last, 'pagemap-7.img'), map)
  await write(last, join(dir, 'flat'))
  assert.is(
    readFileSync(join(dir, 'flat', 'pages-1.img')).toString(),
    ['b', 'a', 'b'].map((c) => c.repeat(PAGE_BYTES)).join(''),
  )
  const { entries } = readPagemap([readFileSync(join(dir, 'flat', 'pagemap-7.img'))])
  assert.equal([...entries], [at(1, 3, present), at(9, 4, lazy)])
})

test('the error for a damaged file has its name', async ({ dir }) => {
  const cases: [what: string, code: 'FORMAT' | 'MISSING' | 'IO', message: RegExp, spoil: (last: string) => void][] = [
    [
      'a parent that is cut off',
      'FORMAT',
      /1\/pages-1\.img is cut off: page 1 is not there/,
      () => truncateSync(join(dir, '1', 'pages-1.img'), 2 * PAGE_BYTES - 1),
    ],
    [
      'its own pages are cut off',
      'FORMAT',
      /2\/pages-1\.img is cut off: page 0 is not/,
      (last) => truncateSync(join(last, 'pages-1.img')),
    ],
    [
      'pages of another size',
      'FORMAT',
      /2\/pages-1\.img has 65536 bytes for 1 pages/,
      (last) => truncateSync(join(last, 'pages-1.img'), 65536),
    ],
    ['no pages', 'IO', /1\/pages-1\.img: ENOENT/, () => rmSync(join(dir, '1', 'pages-1.img'))],
    [
      'a parent without that process',
      'MISSING',
      /2\/pagemap-7\.img: the page at 0x1000 is said to be in a parent/,
      () => rmSync(join(dir, '1', 'pagemap-7.img')),
    ],
    [
      'a parent without that page',
      'MISSING',
      /2\/pagemap-7\.img: the page at 0x3000 is/,
      () => writeFileSync(join(dir, '1', 'pagemap-7.img'), pagemapOf('4.1', 1, [at(1, 1, present), at(4, 1, present)])),
    ],
    ['no parent', 'MISSING', /the page at 0x1000 is said to be in a parent/, (last) => rmSync(join(last, 'parent'))],
    [
      'a pagemap of the parent is another image',
      'FORMAT',
      /1\/pagemap-7\.img: not a pagemap/,
      () => cpSync(join(dir, '1', 'inventory.img'), join(dir, '1', 'pagemap-7.img')),
    ],
    [
      'a pagemap of the parent is cut off',
      'FORMAT',
      /1\/pagemap-7\.img: a pagemap that is cut off/,
      () => truncateSync(join(dir, '1', 'pagemap-7.img'), 20),
    ],
    [
      'an unknown flag',
      'FORMAT',
      /2\/pagemap-7\.img: the pagemap entry at 0x2000 has flags 0xc/,
      (last) => writeFileSync(join(last, 'pagemap-7.img'), pagemapOf('4.2', 1, [at(2, 1, 12)])),
    ],
    [
      'two pagemaps with the same pages',
      'FORMAT',
      /pagemap-8\.img has its pages in pages-1\.img, as another/,
      (last) => cpSync(join(last, 'pagemap-7.img'), join(last, 'pagemap-8.img')),
    ],
  ]
  for (const [what, code, message, spoil] of cases) {
    const before = openFds()
    spoil(twoLayers(dir))
    const fault = await rejectsFault(code, write(join(dir, '2'), join(dir, 'flat')), what)
    assert.match(fault.message, message, what)
    assert.is(openFds(), before, `${what}: a descriptor is left`)
    for (const name of readdirSync(dir)) rmSync(join(dir, name), { recursive: true })
  }
})

test('a parent may have holes for replaced pages (criu dedup)', async ({ dir }) => {
  layer(join(dir, '1'), [at(1, 3, present)], 0x62)
  layer(join(dir, '2'), [at(1, 1, parent), at(2, 1, present), at(3, 1, parent)], 0x61)
  symlinkSync('../1', join(dir, '2', 'parent'))
  const pages = readFileSync(join(dir, '1', 'pages-1.img'))
  writeFileSync(join(dir, '1', 'pages-1.img'), pages.fill(0, PAGE_BYTES, 2 * PAGE_BYTES))
  await write(join(dir, '2'), join(dir, 'flat'))
  assert.is(
    readFileSync(join(dir, 'flat', 'pages-1.img')).toString(),
    ['b', 'a', 'b'].map((c) => c.repeat(PAGE_BYTES)).join(''),
  )
})

test('ranges may be longer than a piece, and begin anywhere', async ({ dir }) => {
  const [count, first] = [1000, 100]
  layer(join(dir, '1'), [at(0, count, present)], 0)
  layer(join(dir, '2'), [at(first, 300, parent), at(first + 300, 2, present), at(first + 302, 500, parent)], 0x61)
  symlinkSync('../1', join(dir, '2', 'parent'))
  const older = Buffer.alloc(count * PAGE_BYTES)
  for (let page = 0; page < count; page++)
    older.fill(page.toString().padStart(8), page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
  writeFileSync(join(dir, '1', 'pages-1.img'), older)
  await write(join(dir, '2'), join(dir, 'flat'))
  const expected = [
    older.subarray(first * PAGE_BYTES, (first + 300) * PAGE_BYTES),
    Buffer.alloc(2 * PAGE_BYTES, 0x61),
    older.subarray((first + 302) * PAGE_BYTES, (first + 802) * PAGE_BYTES),
  ]
  assert.ok(readFileSync(join(dir, 'flat', 'pages-1.img')).equals(Buffer.concat(expected)))
})

test('a source that is destroyed throws the reason', async ({ dir }) => {
  const source = directorySource(twoLayers(dir))
  const reason = new Error('enough')
  source.destroy(reason)
  const reading = (async () => {
    for await (const { name } of source.images) assert.unreachable(name)
  })()
  assert.is(await reasonOf(reading), reason)
})

test('a quarter of a GiB in many thousand ranges takes a few MiB of memory', async ({ dir }) => {
  const pages = 2 ** 16
  const runs = 2 ** 14
  const every = pages / runs
  layer(join(dir, '1'), [], 0)
  layer(join(dir, '2'), [], 0)
  symlinkSync('../1', join(dir, '2', 'parent'))
  // Of four pages one is new, in files without blocks on the disk.
  const older = Array.from({ length: runs }, (_, run) => at(run * every, every, present))
  const newer = older.flatMap(({ vaddr }) => [
    at(vaddr / PAGE_BYTES, 1, present),
    at(vaddr / PAGE_BYTES + 1, every - 1, parent),
  ])
  writeFileSync(join(dir, '1', 'pagemap-7.img'), pagemapOf('4.1', 1, older))
  writeFileSync(join(dir, '2', 'pagemap-7.img'), pagemapOf('4.2', 1, newer))
  for (const [name, size] of [
    ['1', pages],
    ['2', runs],
  ] as const) {
    const fd = openSync(join(dir, name, 'pages-1.img'), 'r+')
    ftruncateSync(fd, size * PAGE_BYTES)
    closeSync(fd)
  }
  const before = process.memoryUsage.rss()
  let most = before
  let bytes = 0
  for (const { body } of flatImages(chainOf(join(dir, '2')))) {
    for await (const piece of body.pieces) {
      bytes += piece.length
      most = Math.max(most, process.memoryUsage.rss())
    }
  }
  assert.ok(bytes > 2 ** 28, `${bytes} bytes`)
  assert.ok(most - before < 100 * 2 ** 20, `${(most - before) / 2 ** 20} MiB`)
})

test.run()
