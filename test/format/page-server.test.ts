import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  closeReply,
  decodeRecord,
  type Layout,
  layouts,
  PageServerDecoder,
  type PageServerEvent,
  type PsRecord,
  psCommand,
} from '../../lib/format/page-server.ts'
import { PAGE_BYTES, type PagemapEntry, pageFlag } from '../../lib/format/pagemap.ts'
import { onlyFaults, throwsFault } from '../expect.ts'
import { dstType, encodeRecord, recordedTalks } from '../support/page-server.ts'
import { fixtures } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('format/page-server')

const { parent, lazy, present } = pageFlag
const { ADD, HOLE, OPEN, OPEN2, PARENT, ADD_F, GET, CLOSE, FORCE_CLOSE } = psCommand
const both: readonly Layout[] = [layouts.old, layouts.new]
const inParent = (): boolean => true
const noParent = (): boolean => false

/** What a conversation brings, with the pages of a pagemap put together. */
type Heard =
  | { kind: 'reply'; hex: string }
  | { kind: 'pagemap'; name: string; entries: PagemapEntry[]; bytes: Buffer }
  | { kind: 'close' }

/** Gives a decoder bytes, as many at a time as it has room for. */
function* feed(decoder: PageServerDecoder, bytes: Buffer): Generator<PageServerEvent> {
  for (let at = 0; at < bytes.length; ) {
    const got = bytes.copy(decoder.room(), 0, at)
    assert.ok(got > 0, 'there is always room')
    at += got
    yield* decoder.push(got)
  }
}

function hear(chunks: Iterable<Buffer>, hasParent: () => boolean): Heard[] {
  const decoder = new PageServerDecoder(hasParent)
  const heard: Heard[] = []
  let name = ''
  let pieces: Buffer[] = []
  const take = (event: PageServerEvent): void => {
    if (event.kind === 'reply') heard.push({ kind: 'reply', hex: Buffer.from(event.bytes).toString('hex') })
    else if (event.kind === 'open') [name, pieces] = [event.name, []]
    else if (event.kind === 'pages') pieces.push(Buffer.from(event.bytes))
    else if (event.kind === 'close') heard.push({ kind: 'close' })
    else heard.push({ kind: 'pagemap', name, entries: event.entries, bytes: Buffer.concat(pieces) })
  }
  for (const chunk of chunks) for (const event of feed(decoder, chunk)) take(event)
  decoder.end()
  return heard
}

function* cut(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length] ?? 1
    yield bytes.subarray(at, at + size)
    at += size
  }
}

type Said = Partial<PsRecord> & { command: number; bytes?: Buffer }

function talk(layout: Layout, ...said: Said[]): Buffer {
  return Buffer.concat(
    said.flatMap(({ bytes, ...record }) => [encodeRecord(layout, record), ...(bytes ? [bytes] : [])]),
  )
}

const task = { type: dstType.task, id: 77 }
const open: Said = { command: OPEN2, ...task }
const close: Said = { command: CLOSE }
const one = pattern(PAGE_BYTES)
const three = pattern(3 * PAGE_BYTES, 2)
const added = (vaddr: number, bytes: Buffer, flags: number = present): Said => {
  return { command: ADD_F, flags, pages: bytes.length / PAGE_BYTES, vaddr, ...task, bytes }
}

const fromHex = (hex: string): Buffer => Buffer.from(hex.replaceAll(' ', ''), 'hex')

test('the records that CRIU sends, byte for byte', () => {
  const old = '06000400 02000000 00b02f7aab550000 01ab6d0000000000'
  const now = '06000400 dd550000 0200000000000000 00b02f7aab550000 01ab6d0000000000'
  const record = { command: ADD_F, flags: present, pages: 2, vaddr: 0x55ab7a2fb000, type: 1, id: 0x6dab }
  assert.equal(decodeRecord(fromHex(old), 0, layouts.old), record)
  assert.equal(decodeRecord(fromHex(now), 0, layouts.new), record, 'what is in the gap does not matter')
  assert.equal(encodeRecord(layouts.old, record), fromHex(old))
  assert.equal(encodeRecord(layouts.new, record), fromHex(now.replace('dd550000', '00000000')))
  assert.equal(
    encodeRecord(layouts.old, { command: FORCE_CLOSE }).toString('hex'),
    '24100000 00000000 0000000000000000 0000000000000000'.replaceAll(' ', ''),
  )
  assert.equal([closeReply(true), closeReply(false)], [fromHex('00000000'), fromHex('ffffffff')])
})

for (const layout of both) {
  const conversation = talk(
    layout,
    { command: PARENT, ...task },
    open,
    added(0x1000, one),
    { command: ADD_F, flags: parent, pages: 5, vaddr: 0x2000, ...task },
    added(0x8000, three, present | lazy),
    { command: OPEN2, type: dstType.shmem, id: 3_000_000_000 },
    { command: FORCE_CLOSE },
  )
  const expected: Heard[] = [
    { kind: 'reply', hex: '01000000' },
    { kind: 'reply', hex: '01' },
    { kind: 'reply', hex: '01' },
    {
      kind: 'pagemap',
      name: 'pagemap-77.img',
      entries: [
        { vaddr: 0x1000, pages: 1, flags: present },
        { vaddr: 0x2000, pages: 5, flags: parent },
        { vaddr: 0x8000, pages: 3, flags: present | lazy },
      ],
      bytes: Buffer.concat([one, three]),
    },
    { kind: 'pagemap', name: 'pagemap-shmem-3000000000.img', entries: [], bytes: Buffer.alloc(0) },
    { kind: 'close' },
  ]

  test(`${layout} bytes a record: a conversation, cut anywhere`, () => {
    for (const sizes of [[conversation.length], [1], [7], [layout], [layout - 1, 1], [23, 9, 4096], [4096 + layout]]) {
      assert.equal(hear(cut(conversation, sizes), inParent), expected, `in chunks of ${sizes}`)
    }
    for (let at = 1; at < conversation.length; at += at < 4 * layout ? 1 : 61) {
      assert.equal(hear([conversation.subarray(0, at), conversation.subarray(at)], inParent), expected, `cut at ${at}`)
    }
  })

  test(`${layout} bytes a record: an end before CLOSE is a dump that failed`, () => {
    for (let at = 0; at < conversation.length; at += at < 4 * layout ? 1 : 61) {
      throwsFault('FAILED_DUMP', () => hear([conversation.subarray(0, at)], inParent), `an end at ${at}`)
    }
  })

  test(`${layout} bytes a record: the first one of every kind tells`, () => {
    const shmem = { type: dstType.shmem, id: 1 }
    for (const first of [open, added(0, one), { command: HOLE, pages: 1, vaddr: 0x7000, ...shmem }] as Said[]) {
      const rest = hear(
        [talk(layout, first, added(0x9000, one), close)].map((bytes) => bytes),
        inParent,
      )
      assert.equal(rest.at(-1), { kind: 'close' }, JSON.stringify(first.command))
    }
  })

  test(`${layout} bytes a record: a first CLOSE is the end, and nothing comes after it`, () => {
    for (const command of [CLOSE, FORCE_CLOSE]) {
      for (const size of [1, 24, 25, 32]) {
        assert.equal(hear(cut(talk(layout, { command }), [size]), noParent), [{ kind: 'close' }])
      }
      assert.equal(hear([talk(layout, open, { command })], noParent).at(-1), { kind: 'close' })
      throwsFault('CRIU_PROTOCOL', () => hear([talk(layout, { command }, open)], noParent))
    }
    throwsFault('CRIU_PROTOCOL', () => hear([talk(layout, open, close), Buffer.alloc(1)], noParent))
    throwsFault('CRIU_PROTOCOL', () => hear([Buffer.concat([talk(layout, open, close), Buffer.alloc(1)])], noParent))
  })

  test(`${layout} bytes a record: what CRIU sent before 2018`, () => {
    const heard = hear(
      [
        talk(
          layout,
          { command: OPEN, type: 11, id: 5 },
          { command: ADD, pages: 1, vaddr: 0x1000, type: 11, id: 5, bytes: one },
          { command: HOLE, pages: 2, vaddr: 0x2000, type: 11, id: 5 },
          { command: ADD, pages: 1, vaddr: 0x4000, type: 27, id: 9, bytes: one },
          close,
        ),
      ],
      inParent,
    )
    assert.equal(heard, [
      {
        kind: 'pagemap',
        name: 'pagemap-5.img',
        entries: [
          { vaddr: 0x1000, pages: 1, flags: present },
          { vaddr: 0x2000, pages: 2, flags: parent },
        ],
        bytes: one,
      },
      {
        kind: 'pagemap',
        name: 'pagemap-shmem-9.img',
        entries: [{ vaddr: 0x4000, pages: 1, flags: present }],
        bytes: one,
      },
      { kind: 'close' },
    ])
    for (const type of [1, 10, 11, 16, 17]) assert.is(nameOf(layout, type, 5), 'pagemap-5.img')
    for (const type of [2, 27, 28, 29, 32, 33, 34]) assert.is(nameOf(layout, type, 5), 'pagemap-shmem-5.img')
  })

  const lies: [what: string, message: RegExp, said: Said[]][] = [
    ['an unknown command', /unknown command 0x8$/, [{ command: 8, ...task }]],
    ['command 0', /unknown command 0x0$/, [{ command: 0, ...task }]],
    ['pages asked for', /lazy pages are not served/, [{ command: GET, vaddr: 0x1000, pages: 1, ...task }]],
    ['flags of no entry', /command 0x4 with flags 0x4/, [{ ...open, flags: 4 }]],
    ['an unknown flag', /0x1000 of pagemap-77.img has flags 0x8, known are 0x7/, [added(0x1000, one, 8)]],
    ['no flags', /is said to be nowhere/, [added(0x1000, one, 0)]],
    ['pages in the parent and here', /in the parent and not/, [added(0x1000, one, parent | present)]],
    ['lazy pages', /has no pages with it/, [added(0x1000, one, lazy)]],
    ['no pages', /has no pages$/, [added(0x1000, Buffer.alloc(0))]],
    ['too many pages', /too many/, [{ ...added(2 ** 53 - PAGE_BYTES, one), pages: 2 ** 32 - 1 }]],
    ['an address above all', /too many/, [added(2 ** 63, one)]],
    ['an address within a page', /does not begin at a page/, [added(0x1800, one)]],
    ['an entry again', /0x1000 of pagemap-77.img is out of order/, [added(0x1000, one), added(0x1000, one)]],
    ['entries that overlap', /0x3000 .* is out of order/, [added(0x1000, three), added(0x3000, one)]],
    ['a pagemap twice', /opens pagemap-77.img twice/, [open]],
    ['a pagemap twice, by an older type', /opens pagemap-77.img twice/, [{ ...open, type: 10 }]],
    ['a pagemap gone on with', /opens pagemap-77.img twice/, [{ ...open, id: 78 }, added(0x1000, one)]],
    ['an unknown type', /unknown type 3$/, [{ command: OPEN2, type: 3, id: 1 }]],
    ['task 0', /names pages of task 0$/, [{ command: OPEN2, type: 1, id: 0 }]],
    ['a task above all', /names pages of task 4194305$/, [{ command: OPEN2, type: 1, id: 2 ** 22 + 1 }]],
    [
      'shared memory above all',
      /names pages of shared memory 36028797018963970$/,
      [{ command: PARENT, type: 2, id: 2 ** 55 }],
    ],
  ]
  for (const [what, message, said] of lies) {
    test(`${layout} bytes a record, refused: ${what}`, () => {
      const bytes = talk(layout, open, ...said, close)
      assert.match(throwsFault('CRIU_PROTOCOL', () => hear([bytes], inParent)).message, message)
      assert.match(throwsFault('CRIU_PROTOCOL', () => hear(cut(bytes, [1]), inParent)).message, message)
    })
  }

  test(`${layout} bytes a record, refused: a page in a parent where there is none`, () => {
    for (const hole of [
      { command: HOLE, pages: 1, vaddr: 0, ...task },
      { command: ADD_F, flags: parent, pages: 1, vaddr: 0, ...task },
    ]) {
      assert.match(
        throwsFault('CRIU_PROTOCOL', () => hear([talk(layout, open, hole)], noParent)).message,
        /is said to be in a parent, and there is none/,
      )
    }
  })
}

test('a task and a shared memory object may have the same number', () => {
  const shmem = { type: dstType.shmem, id: task.id }
  const heard = hear([talk(layouts.new, open, { ...open, ...shmem }, close)], noParent)
  const names = heard.flatMap((what) => (what.kind === 'pagemap' ? [what.name] : []))
  assert.equal(names, ['pagemap-77.img', 'pagemap-shmem-77.img'])
})

function nameOf(layout: Layout, type: number, id: number): string | undefined {
  const heard = hear([talk(layout, { command: OPEN, type, id }, close)], noParent)[0]
  return heard?.kind === 'pagemap' ? heard.name : undefined
}

test('nr_pages has 32 bits in one layout and 64 in the other', () => {
  const more = { ...added(0x1000, one), pages: 2 ** 32 }
  assert.match(
    throwsFault('CRIU_PROTOCOL', () => hear([talk(layouts.new, open, more)], noParent)).message,
    /has 4294967296 pages: too many/,
  )
})

test('entries of one pagemap are limited', () => {
  const said = Array.from({ length: 4 }, (_, n) => added(n * PAGE_BYTES, one))
  for (const entries of [3, 4]) {
    const decoder = new PageServerDecoder(noParent, 3)
    const take = (): number => [...feed(decoder, talk(layouts.old, open, ...said.slice(0, entries)))].length
    if (entries === 3) take()
    else assert.match(throwsFault('LIMIT', take).message, /pagemap-77.img has more than 3 entries/)
  }
})

const anyPagemap = fc.record({
  id: fc.integer({ min: 1, max: 2 ** 22 }),
  shmem: fc.boolean(),
  entries: fc.array(
    fc.record({
      gap: fc.integer({ min: 0, max: 2 ** 30 }),
      pages: fc.integer({ min: 1, max: 40 }),
      flags: fc.constantFrom(present, parent, present | lazy),
    }),
    { maxLength: 8 },
  ),
})

test('whatever is said is heard, in chunks of any size, in both layouts', () => {
  const anything = fc.record({
    layout: fc.constantFrom(...both),
    pagemaps: fc.uniqueArray(anyPagemap, { maxLength: 4, selector: ({ id }) => id }),
    sizes: fc.array(fc.integer({ min: 1, max: 200_000 }), { minLength: 1, maxLength: 6 }),
  })
  fc.assert(
    fc.property(anything, ({ layout, pagemaps, sizes }) => {
      const said: Said[] = []
      const expected: Heard[] = []
      for (const { id, shmem, entries } of pagemaps) {
        const dst = { type: shmem ? dstType.shmem : dstType.task, id }
        said.push({ command: OPEN, ...dst })
        const brought: PagemapEntry[] = []
        const bytes: Buffer[] = []
        let vaddr = 0
        for (const { gap, pages, flags } of entries) {
          vaddr += gap * PAGE_BYTES
          const own = (flags & present) === 0 ? Buffer.alloc(0) : pattern(pages * PAGE_BYTES, vaddr % 97)
          said.push({ command: ADD_F, flags, pages, vaddr, ...dst, bytes: own })
          brought.push({ vaddr, pages, flags })
          bytes.push(own)
          vaddr += pages * PAGE_BYTES
        }
        const name = `pagemap-${shmem ? 'shmem-' : ''}${id}.img`
        expected.push({ kind: 'pagemap', name, entries: brought, bytes: Buffer.concat(bytes) })
      }
      const heard = hear(cut(talk(layout, ...said, close), sizes), inParent)
      assert.equal(heard, [...expected, { kind: 'close' }])
    }),
    { numRuns: 60 },
  )
})

test('random bytes, and damage to a real conversation, throw nothing but a Fault', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 300 }),
      fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1 }),
      (bytes, sizes) => {
        onlyFaults(() => hear(cut(Buffer.from(bytes), sizes), inParent))
      },
    ),
    { numRuns: 2000 },
  )
  for (const { bytes } of recordedTalks()) {
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const damaged = Buffer.from(bytes)
        damaged[at] = (damaged[at] as number) ^ flip
        onlyFaults(() => hear([damaged], inParent))
      }),
      { numRuns: 200 },
    )
  }
})

test('what each CRIU said, cut anywhere', () => {
  const talks = recordedTalks()
  assert.equal(
    talks.map(({ criu }) => criu.slice(0, 3)),
    ['4.1', '4.2', '4.3'],
  )
  for (const { criu, bytes } of talks) {
    const whole = hear([bytes], noParent)
    const pagemaps = whole.filter((heard) => heard.kind === 'pagemap')
    assert.is(pagemaps.length, 3, 'two tasks and what they share')
    assert.is(pagemaps.filter(({ name }) => name.startsWith('pagemap-shmem-')).length, 1)
    for (const { entries, bytes: pages } of pagemaps) {
      assert.is(entries.reduce((sum, entry) => sum + entry.pages, 0) * PAGE_BYTES, pages.length)
    }
    assert.equal(whole.at(-1), { kind: 'close' })
    for (const sizes of [[1], [31], [4096], [65536, 5]]) assert.equal(hear(cut(bytes, sizes), noParent), whole, criu)
  }
})

test('pages are given away in large pieces, and before anything else is said', () => {
  const decoder = new PageServerDecoder(noParent)
  const singles = Array.from({ length: 600 }, (_, n) => added(0x100000 + 2 * n * PAGE_BYTES, one))
  const large = added(0x10000000, pattern(500 * PAGE_BYTES, 5))
  const bytes = talk(layouts.new, open, ...singles, large, { ...open, id: 78 })
  const heard: string[] = []
  for (const chunk of cut(bytes, [40_000])) {
    for (const event of feed(decoder, chunk)) {
      if (event.kind !== 'pages') heard.push(event.kind)
      else heard.push(event.bytes.length > 700_000 ? 'many pages' : 'the last pages')
    }
  }
  const many = Array.from({ length: 5 }, () => 'many pages')
  assert.equal(heard, ['reply', 'open', ...many, 'reply', 'the last pages', 'complete', 'open'])
})

for (const release of ['411', '421']) {
  test(`three rounds that CRIU ${release.split('').join('.')} sent, answered as its own page server did`, () => {
    const recorded = (round: number, what: string): Buffer =>
      gunzipSync(readFileSync(join(fixtures, 'page-server', `vm-${release}-round${round}.${what}.gz`)))
    let before = new Set<string>()
    for (const round of [1, 2, 3]) {
      const decoder = new PageServerDecoder((name) => before.has(name))
      const [answers, names]: [Uint8Array[], Set<string>] = [[], new Set()]
      let holes = 0
      for (const event of feed(decoder, recorded(round, 'bin'))) {
        if (event.kind === 'reply') answers.push(event.bytes)
        if (event.kind === 'open') names.add(event.name)
        if (event.kind === 'complete') holes += event.entries.filter(({ flags }) => (flags & parent) !== 0).length
      }
      decoder.end()
      assert.equal(Buffer.concat([...answers, closeReply(true)]), recorded(round, 'reply.bin'))
      assert.is(holes > 0, round > 1)
      before = names
    }
  })
}

test.run()
