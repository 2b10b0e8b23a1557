import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import {
  encodePagemap,
  endOfEntry,
  PAGE_BYTES,
  PagemapDecoder,
  type PagemapEntry,
  pageFlag,
  presentPages,
  readPagemap,
} from '../../lib/format/pagemap.ts'
import { onlyFaults, throwsFault } from '../expect.ts'
import { chains } from '../support/chains.ts'
import { fixtures } from '../support/run.ts'

const test = suite('format/pagemap')

const { parent, lazy, present } = pageFlag

function fromHex(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

const HEAD = '19435654 25400856'
const FIRST = `${HEAD} 02000000 0801`

/** A pagemap of bodies: hex of one entry each. */
function pagemap(...bodies: string[]): Buffer {
  const framed = bodies.map((body) => {
    const bytes = fromHex(body)
    const size = Buffer.alloc(4)
    size.writeUInt32LE(bytes.length)
    return Buffer.concat([size, bytes])
  })
  return Buffer.concat([fromHex(FIRST), ...framed])
}

interface Decoded {
  pagesId: number
  entries: PagemapEntry[]
}

function decode(bytes: Uint8Array): Decoded {
  const { pagesId, entries } = readPagemap([bytes])
  return { pagesId, entries: [...entries] }
}

function encode({ pagesId, entries }: Decoded): Buffer {
  return Buffer.concat([...encodePagemap(pagesId, entries)])
}

const bodies: [what: string, body: string, entry: PagemapEntry][] = [
  ['CRIU 4.1: the old count alone', '08 8080c0c8ebff1f 10 03 20 06', { vaddr: 0x7ffeb9100000, pages: 3, flags: 6 }],
  ['CRIU 4.2: 0 there, and the new count', '08 80808002 10 00 20 04 28 02', { vaddr: 0x400000, pages: 2, flags: 4 }],
  ['both counts', '08 80808002 10 02 20 04 28 02', { vaddr: 0x400000, pages: 2, flags: 4 }],
  ['before flags: in the parent', '08 8020 10 01 18 01', { vaddr: 0x1000, pages: 1, flags: parent }],
  ['before flags: not in the parent', '08 8020 10 01 18 00', { vaddr: 0x1000, pages: 1, flags: present }],
  ['before flags and parents', '08 8020 10 01', { vaddr: 0x1000, pages: 1, flags: present }],
  ['in_parent beside flags', '08 8020 10 01 18 01 20 02', { vaddr: 0x1000, pages: 1, flags: parent | lazy }],
  ['lazy, without bytes', '08 8020 10 01 20 02', { vaddr: 0x1000, pages: 1, flags: lazy }],
  ['address 0 of a shared memory object', '08 00 10 10 20 04 28 10', { vaddr: 0, pages: 16, flags: present }],
  ['the most pages', '08 00 10 ffffffff0f 20 01', { vaddr: 0, pages: 2 ** 32 - 1, flags: parent }],
  ['fields in another order', '28 02 20 04 10 00 08 8020', { vaddr: 0x1000, pages: 2, flags: present }],
]
for (const [what, body, entry] of bodies) {
  test(`an entry, ${what}`, () => {
    assert.equal(decode(pagemap(body)), { pagesId: 1, entries: [entry] })
    assert.equal(decode(encode({ pagesId: 1, entries: [entry] })), { pagesId: 1, entries: [entry] })
  })
}

test('what is encoded has both counts, and is pinned', () => {
  const entries = [
    { vaddr: 0x400000, pages: 2, flags: present },
    { vaddr: 0x7ffeb9100000, pages: 300, flags: present | lazy },
  ]
  const inHex = '0b000000 0880808002 1002 2004 2802 10000000 088080c0c8ebff1f 10ac02 2006 28ac02'
  const pinned = `${HEAD} 03000000 088104 ${inHex}`
  assert.is(encode({ pagesId: 513, entries }).toString('hex'), fromHex(pinned).toString('hex'))
  assert.equal(decode(fromHex(pinned)), { pagesId: 513, entries })
})

const refusals: [what: string, bytes: Buffer, message: RegExp][] = [
  ['field 6', pagemap('08 8020 10 01 20 04 32 02 0101'), /field 6, known are 1 to 5/],
  ['field 7', pagemap('08 8020 10 01 20 04 38 01'), /field 7,/],
  ['a far field', pagemap('08 8020 10 01 f8ffff7f 01'), /field 33554431,/],
  ['flag 8', pagemap('08 8020 10 01 20 0c'), /0x1000 has flags 0xc, known are 0x7/],
  ['flag 2^32', pagemap('08 8020 10 01 20 8480808010'), /has flags 0x100000004/],
  [
    'both in the parent and not',
    pagemap('08 8020 10 01 20 05'),
    /at 0x1000 is said to be in the parent and not \(flags 5\)/,
  ],
  ['in_parent, and present', pagemap('08 8020 10 01 18 01 20 04'), /in the parent and not/],
  ['flags 0', pagemap('08 8020 10 01 20 00'), /is said to be nowhere/],
  ['no pages', pagemap('08 8020 10 00 20 04'), /at 0x1000 has no pages/],
  ['no pages, by the new count', pagemap('08 8020 10 00 20 04 28 00'), /has no pages/],
  ['two counts', pagemap('08 8020 10 01 20 04 28 02'), /counts 1 pages and 2/],
  ['more pages than the old count holds', pagemap('08 00 10 00 20 04 28 8080808010'), /4294967296 pages: too many/],
  ['an end beyond what a number holds', pagemap('08 80c0ffffffffff0f 10 ff01 20 04'), /255 pages: too many/],
  ['an address within a page', pagemap('08 8120 10 01 20 04'), /at 0x1001 does not begin at a page/],
  ['no address', pagemap('10 01 20 04'), /without an address or a count/],
  ['no old count', pagemap('08 8020 20 04 28 01'), /without an address or a count/],
  ['nothing in an entry', pagemap(''), /without an address or a count/],
  ['one before another', pagemap('08 8040 10 01', '08 8020 10 01'), /out of order at 0x1000/],
  ['one within another', pagemap('08 8020 10 02', '08 8040 10 01'), /out of order at 0x2000/],
  ['the same twice', pagemap('08 8020 10 01', '08 8020 10 01'), /out of order/],
  ['a field that is no number', pagemap('08 8020 12 01'), /damaged pagemap entry/],
  ['field 0', pagemap('00 01'), /damaged pagemap entry/],
  ['a number without an end', pagemap('08 ff'), /damaged pagemap entry/],
  ['a number of eleven bytes', pagemap('08 8080808080808080808000 10 01'), /damaged pagemap entry/],
  ['no pages image', fromHex(`${HEAD} 00000000`), /does not name its pages image/],
  ['another field in the first', fromHex(`${HEAD} 04000000 08011001`), /field 2, known are 1 to 1/],
  ['another magic', fromHex('19435654 26400856 02000000 0801'), /not a pagemap image/],
  ['no common magic', fromHex('25400856 02000000 0801'), /not a pagemap image/],
]
for (const [what, bytes, message] of refusals) {
  test(`refused by name: ${what}`, () => {
    assert.match(throwsFault('FORMAT', () => decode(bytes)).message, message)
  })
}

test('numbers above their limits are LIMIT', () => {
  throwsFault('LIMIT', () => decode(pagemap('08 8080808080808010 10 01')), 'an address')
  throwsFault('LIMIT', () => decode(fromHex(`${HEAD} 06000000 088080808010`)), 'the number of the pages image')
  throwsFault('LIMIT', () => encode({ pagesId: 1, entries: [{ vaddr: 0, pages: 2 ** 32, flags: present }] }))
})

test('an entry that is too long is refused from its first bytes: by what is in it, or by its length', () => {
  const size = 'ffffffff'
  const decoder = new PagemapDecoder()
  decoder.push(fromHex(`${FIRST} ${size}`))
  const fault = throwsFault('LIMIT', () => decoder.push(fromHex('2004'.repeat(32))))
  assert.match(fault.message, '4294967295 bytes')
  const compressed = `${FIRST} ${size} 08 8020 10 01 20 04 32 ff7f ${'01'.repeat(100)}`
  assert.match(throwsFault('FORMAT', () => new PagemapDecoder().push(fromHex(compressed))).message, 'field 6')
})

// Images that CRIU made

const real = chains().flatMap(({ criu, directories }) =>
  directories.flatMap((directory) =>
    readdirSync(directory)
      .filter((name) => name.startsWith('pagemap-'))
      .map((name) => ({
        criu,
        name: `${directory.split('/').at(-1)}/${name}`,
        path: join(directory, name),
        directory,
      })),
  ),
)
real.push({
  criu: '4.2.1',
  name: 'images',
  path: join(fixtures, 'images', 'pagemap-18177.img'),
  directory: join(fixtures, 'images'),
})

for (const criu of new Set(real.map((image) => image.criu))) {
  test(`the pagemaps of CRIU ${criu}: as many pages as are in their pages images, again the same when encoded`, () => {
    const flagsSeen = new Set<number>()
    for (const { path, name, directory } of real.filter((image) => image.criu === criu)) {
      const decoded = decode(readFileSync(path))
      const bytes = readFileSync(join(directory, `pages-${decoded.pagesId}.img`)).length
      assert.is(decoded.entries.reduce((sum, entry) => sum + presentPages(entry), 0) * PAGE_BYTES, bytes, name)
      for (const { flags } of decoded.entries) flagsSeen.add(flags)
      assert.equal(decode(encode(decoded)), decoded, name)
    }
    assert.equal([...flagsSeen].sort(), [parent, present, present | lazy])
  })
}

test('in chunks of any size the same comes out', () => {
  for (const { path, name } of real) {
    const bytes = readFileSync(path)
    const whole = decode(bytes)
    for (const size of [1, 2, 3, 7, 64]) {
      const decoder = new PagemapDecoder()
      const entries: PagemapEntry[] = []
      for (let at = 0; at < bytes.length; at += size) entries.push(...decoder.push(bytes.subarray(at, at + size)))
      decoder.end()
      assert.equal({ pagesId: decoder.pagesId, entries }, whole, `${name} by ${size}`)
    }
  }
})

test('cut at every byte: a Fault, or at the end of an entry the entries before it', () => {
  const bytes = readFileSync(real[0]?.path ?? '')
  const whole = decode(bytes)
  let shorter = 0
  for (let cut = 0; cut < bytes.length; cut++) {
    const decoded = onlyFaults(() => decode(bytes.subarray(0, cut)))
    if (decoded === undefined) continue
    assert.equal(decoded.entries, whole.entries.slice(0, shorter))
    shorter++
  }
  assert.is(shorter, whole.entries.length)
})

test('each bit flipped, and random bytes: a Fault, or entries in order that encode to the same', () => {
  let decoded = 0
  const check = (bytes: Buffer): void => {
    const found = onlyFaults(() => decode(bytes))
    if (found === undefined) return
    decoded++
    found.entries.forEach((entry, at) => {
      assert.ok(entry.pages > 0 && entry.vaddr % PAGE_BYTES === 0 && endOfEntry(entry) <= Number.MAX_SAFE_INTEGER)
      assert.ok(at === 0 || endOfEntry(found.entries[at - 1] as PagemapEntry) <= entry.vaddr)
    })
    assert.equal(decode(encode(found)), found)
  }
  const bytes = readFileSync(real[0]?.path ?? '')
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Buffer.from(bytes)
    flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    check(flipped)
  }
  assert.ok(decoded > 50, `${decoded} were decoded`)
  const head = fromHex(FIRST)
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (random) => check(Buffer.concat([head, random]))))
  fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), (random) => check(Buffer.from(random))))
  const body = fc.uint8Array({ maxLength: 20 }).map((random) => Buffer.from(random).toString('hex'))
  fc.assert(
    fc.property(fc.array(body, { maxLength: 4 }), (random) => check(pagemap(...random))),
    { numRuns: 3000 },
  )
})

test('random entries come back, and a pagemap of many comes in pieces', () => {
  const entry = fc.record({
    gap: fc.nat(2 ** 30),
    pages: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 2 ** 32 - 1 })),
    flags: fc.constantFrom(parent, lazy, parent | lazy, present, present | lazy),
  })
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 30 }), fc.nat(2 ** 32 - 1), (random, pagesId) => {
      let vaddr = 0
      const entries = random.map(({ gap, pages, flags }) => {
        const made = { vaddr: vaddr + gap * PAGE_BYTES, pages, flags }
        vaddr = endOfEntry(made)
        return made
      })
      assert.equal(decode(encode({ pagesId, entries })), { pagesId, entries })
    }),
  )
  const many = Array.from({ length: 100_000 }, (_, at) => ({ vaddr: at * 2 * PAGE_BYTES, pages: 1, flags: present }))
  const pieces = [...encodePagemap(1, many)]
  assert.ok(pieces.length > 10 && pieces.every((piece) => piece.length < 70_000), `${pieces.length} pieces`)
  let at = 0
  for (const { vaddr } of readPagemap(pieces).entries) assert.is(vaddr, many[at++]?.vaddr)
  assert.is(at, many.length)
})

test('a Fault in the middle comes after the entries before it', () => {
  const { entries } = readPagemap([pagemap('08 8020 10 01'), fromHex('02000000 3801')])
  const read: PagemapEntry[] = []
  assert.throws(
    () => read.push(...entries),
    (error: unknown) => error instanceof Fault,
  )
  const seen: number[] = []
  const again = readPagemap([pagemap('08 8020 10 01'), fromHex('02000000 3801')]).entries[Symbol.iterator]()
  seen.push((again.next().value as PagemapEntry).vaddr)
  throwsFault('FORMAT', () => again.next())
  assert.equal(seen, [0x1000])
})

test.run()
