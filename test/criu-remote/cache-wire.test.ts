import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  encodeImageEntry,
  encodeList,
  LONGEST_SNAPSHOTS,
  RemoteWireDecoder,
  type RemoteWireEvent,
} from '../../lib/criu-remote/cache-wire.ts'
import { encode, encodeIds, openMode } from '../../lib/criu-remote/messages.ts'
import { remoteImageEntry } from '../../lib/format/criu-messages.ts'
import type { ImageName } from '../../lib/format/names.ts'
import { onlyFaults, throwsFault } from '../expect.ts'
import { pattern } from '../support/talk.ts'

const test = suite('criu-remote/cache-wire')

const { write, append } = openMode
const D = '/tmp/d'

type Heard = Exclude<RemoteWireEvent, { kind: 'bytes' | 'imageEnd' }> | { kind: 'body'; hex: string }

/** Fails if the decoder yields events without end, before memory runs out. */
function* eventsOf(decoder: RemoteWireDecoder, chunk: Uint8Array): Generator<RemoteWireEvent> {
  let count = 0
  for (const event of decoder.push(chunk)) {
    if (++count > chunk.length + 100) throw new Error(`${count} events of ${chunk.length} bytes`)
    yield event
  }
}

function hear(
  chunks: Iterable<Uint8Array>,
  decoder: RemoteWireDecoder = new RemoteWireDecoder(),
  ends = true,
): Heard[] {
  const heard: Heard[] = []
  let body: Buffer[] = []
  for (const chunk of chunks) {
    for (const event of eventsOf(decoder, chunk)) {
      if (event.kind === 'bytes') body.push(Buffer.from(event.bytes))
      else if (event.kind === 'imageEnd') {
        heard.push({ kind: 'body', hex: Buffer.concat(body).toString('hex') })
        body = []
      } else heard.push(event)
    }
  }
  if (ends) decoder.end()
  return heard
}

const entry = (name: string, size: number, mode: number = write, snapshot = D): Buffer =>
  encode(remoteImageEntry, { name, snapshot_id: snapshot, open_mode: mode, size })

function pushes(...snapshots: string[]): Buffer {
  let size = 0
  return Buffer.concat(
    snapshots.flatMap((each) => {
      const id = encodeIds([each])
      size += id.length
      return [entry('parent', size, append, ''), id, entry('parent', size, append, 'null'), id]
    }),
  )
}

function bytewise(bytes: Buffer): Buffer[] {
  return Array.from(bytes, (byte) => Buffer.of(byte))
}

const conversation = Buffer.concat([
  pushes(D),
  entry('core-1.img', 3),
  Buffer.from('abc'),
  entry('empty.img', 0),
  entry('pages-1.img', 4096),
  pattern(4096),
  entry('inventory.img', 1, append),
  Buffer.from('i'),
])

const said: Heard[] = [
  { kind: 'push', snapshot: D },
  { kind: 'snapshot', snapshot: D },
  { kind: 'image', name: 'core-1.img' as ImageName, append: false, bytes: 3 },
  { kind: 'body', hex: '616263' },
  { kind: 'image', name: 'empty.img' as ImageName, append: false, bytes: 0 },
  { kind: 'body', hex: '' },
  { kind: 'image', name: 'pages-1.img' as ImageName, append: false, bytes: 4096 },
  { kind: 'body', hex: pattern(4096).toString('hex') },
  { kind: 'image', name: 'inventory.img' as ImageName, append: false, bytes: 1 },
  { kind: 'body', hex: '69' },
]

test('the bytes of entries are pinned', () => {
  const inventory = '1b0000000a0d696e76656e746f72792e696d6712062f746d702f641801204d'
  assert.is(encodeImageEntry(D, 'inventory.img' as ImageName, 77).toString('hex'), inventory)
  const id = '080000000a062f746d702f64'
  assert.is(encodeList([D])[0]?.toString('hex'), '0f0000000a06706172656e741200188008200c')
  assert.is(encodeList([D])[1]?.toString('hex'), id)
  // The body is the whole list, not only what is added.
  const list = encodeList([D, D]).map((part) => part.toString('hex'))
  assert.equal(list.slice(0, 2), ['0f0000000a06706172656e7412001880082018', id + id])
})

test('a conversation decodes at once as byte by byte', () => {
  assert.equal(hear([conversation]), said)
  assert.equal(hear(bytewise(conversation)), said)
})

test('an empty image ends at once, and does not swallow the next entry', () => {
  const two = Buffer.concat([pushes(D), entry('empty.img', 0), entry('core-1.img', 1), Buffer.of(7)])
  assert.is(hear([two]).filter(({ kind }) => kind === 'body').length, 2)
})

test('an image whose size is a multiple of 4096 ends with its last byte, not with the next entry', () => {
  const decoder = new RemoteWireDecoder()
  const heard = hear([pushes(D), entry('pages-1.img', 8192), pattern(8192)], decoder, false)
  assert.is(heard.at(-1)?.kind, 'body')
})

test('sizes above 2 and 4 GiB do not overflow', () => {
  for (const size of [2 ** 31 - 1, 2 ** 31, 2 ** 32 + 5, 2 ** 40]) {
    const decoder = new RemoteWireDecoder()
    const heard = hear([pushes(D), entry('pages-1.img', size), pattern(100)], decoder, false)
    assert.equal(heard.at(-1), { kind: 'image', name: 'pages-1.img', append: false, bytes: size })
    throwsFault('TRUNCATED', () => decoder.end())
  }
  const decoder = new RemoteWireDecoder()
  const chunk = Buffer.alloc(2 ** 26)
  let bytes = 0
  let ended = 0
  const take = (piece: Uint8Array): void => {
    for (const event of eventsOf(decoder, piece)) {
      if (event.kind === 'bytes') bytes += event.bytes.length
      if (event.kind === 'imageEnd') ended++
    }
  }
  take(Buffer.concat([pushes(D), entry('pages-1.img', 2 ** 31 + 2 ** 26)]))
  for (let at = 0; at < 33; at++) take(chunk)
  assert.equal([bytes, ended], [2 ** 31 + 2 ** 26, 1])
  decoder.end()
  throwsFault('LIMIT', () => hear([pushes(D), entry('pages-1.img', 2 ** 49)]))
})

test('the end of the stream inside a body or an entry is TRUNCATED', () => {
  const boundaries = new Set([0])
  for (let cut = 0; cut <= conversation.length; cut++) {
    const decoder = new RemoteWireDecoder()
    const heard = hear([conversation.subarray(0, cut)], decoder, false)
    try {
      decoder.end()
      boundaries.add(cut)
      const opened = heard.filter(({ kind }) => kind === 'image').length
      assert.is(opened, heard.filter(({ kind }) => kind === 'body').length, `cut at ${cut}`)
    } catch (error) {
      throwsFault('TRUNCATED', () => {
        throw error
      })
    }
  }
  // The stream may end at the start, after each of two lists, and after each of four images.
  assert.is(boundaries.size, 7)
})

test('an append brings the bytes beyond the earlier size; an image that is written again comes whole', () => {
  const parts = [entry('a.img', 2), Buffer.from('ab'), entry('a.img', 5, append), Buffer.from('cde')]
  const heard = hear([pushes(D), ...parts, entry('a.img', 1), Buffer.from('x')])
  const images = heard.filter((event) => event.kind === 'image')
  assert.equal(
    images.map((event) => event.kind === 'image' && [event.append, event.bytes]),
    [
      [false, 2],
      [true, 3],
      [false, 1],
    ],
  )
  throwsFault('CRIU_PROTOCOL', () => hear([pushes(D), ...parts, entry('a.img', 4, append)]))
})

test('dumps come in the order of the list, and an image of an unlisted dump is refused', () => {
  const image = (snapshot: string): Buffer => Buffer.concat([entry('a.img', 1, write, snapshot), Buffer.of(1)])
  const heard = hear([pushes('a', 'b'), image('a'), image('b'), image('b')])
  assert.equal(
    heard.filter(({ kind }) => kind === 'snapshot'),
    ['a', 'b'].map((snapshot) => ({ kind: 'snapshot', snapshot })),
  )
  throwsFault('CRIU_PROTOCOL', () => hear([image('a')]))
  throwsFault('CRIU_PROTOCOL', () => hear([pushes('a', 'b'), image('b'), image('a')]))
  throwsFault('CRIU_PROTOCOL', () => hear([pushes('a', 'b', 'a')]))
})

test('a dump that is tried again in the same directory replaces what came', () => {
  const one = [pushes('a'), entry('a.img', 5, append, 'a'), Buffer.alloc(5)]
  const id = encodeIds(['a'])
  const again = [entry('parent', 2 * id.length, append, ''), id, entry('a.img', 3, append, 'a'), Buffer.alloc(3)]
  const last = hear([...one, ...again]).findLast((event) => event.kind === 'image')
  assert.equal(last, { kind: 'image', name: 'a.img', append: false, bytes: 3 })
})

test('a list that loses its first dump is refused: proxies since May 2018 do so', () => {
  const [first, second] = [encodeIds(['/tmp/first']), encodeIds(['/tmp/b'])]
  const lost = [entry('parent', first.length, append, ''), first, entry('parent', second.length, append, ''), second]
  const { hint } = throwsFault('CRIU_PROTOCOL', () => hear(lost))
  assert.match(hint ?? '', /dump without pre-dumps/)
})

test('a finish is skipped, and requests are refused', () => {
  const [old, now] = [entry('DUMP_FINISH', 0, write, 'null'), entry('', 0, write, '')]
  assert.equal(hear([pushes(D), old, now]), [{ kind: 'push', snapshot: D }])
  throwsFault('CRIU_PROTOCOL', () => hear([entry('DUMP_FINISH', 1, write, 'null')]))
  throwsFault('CRIU_PROTOCOL', () => hear([pushes(D), entry('a.img', 0, 0)]))
  throwsFault('CRIU_PROTOCOL', () => hear([entry('parent', 0, 0, '')]))
  throwsFault('CRIU_PROTOCOL', () => hear([pushes(D), entry('a.img', 0, 2)]))
})

test('hostile entries have limits', () => {
  throwsFault('NAME', () => hear([pushes(D), entry('../etc/passwd', 1)]))
  throwsFault('LIMIT', () => hear([entry('parent', LONGEST_SNAPSHOTS + 1, append, '')]))
  throwsFault('LIMIT', () => hear([tooMany()]))
  for (const length of [0, 2 ** 14, 2 ** 32 - 1]) {
    const head = Buffer.alloc(4)
    head.writeUInt32LE(length)
    throwsFault('CRIU_PROTOCOL', () => hear([head]))
  }
  const cut = encodeIds(['abc']).subarray(0, -1)
  throwsFault('CRIU_PROTOCOL', () => hear([entry('parent', cut.length, append, ''), cut]))
})

function tooMany(): Buffer {
  const ids = encodeIds(Array.from({ length: 1002 }, (_, at) => `d${at}`))
  return Buffer.concat([entry('parent', ids.length, append, ''), ids])
}

test('random cuts and flips end in events or a Fault, in pieces as at once', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(conversation.length - 1), fc.integer({ min: 1, max: 255 })), { maxLength: 3 }),
      fc.nat(conversation.length),
      fc.integer({ min: 1, max: 300 }),
      (flips, cut, step) => {
        const bytes = Buffer.from(conversation.subarray(0, cut))
        for (const [at, mask] of flips) if (at < cut) bytes[at] = (bytes[at] as number) ^ mask
        const pieces: Buffer[] = []
        for (let at = 0; at < cut; at += step) pieces.push(bytes.subarray(at, at + step))
        assert.equal(
          onlyFaults(() => hear(pieces)),
          onlyFaults(() => hear([bytes])),
        )
      },
    ),
    { numRuns: 2000 },
  )
})

test.run()
