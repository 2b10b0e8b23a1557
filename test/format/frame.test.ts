import { crc32 } from 'node:zlib'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  decodeFrame,
  decodeHeader,
  encodeFrame,
  type Frame,
  frameType,
  HEADER_BYTES,
  headBytes,
  MOST_DATA,
  NO_TOKEN,
} from '../../lib/format/frame.ts'
import { encodeImageList, LARGEST_IMAGE, MOST_IMAGES } from '../../lib/format/image-list.ts'
import { type ImageName, imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { checkPreamble, encodePreamble, PREAMBLE_BYTES } from '../../lib/format/preamble.ts'
import { onlyFaults, throwsFault } from '../expect.ts'

const test = suite('format/frame')

const id = snapshotId('web-1')
const digest = 0xfedcba9876543210n
const token = Buffer.from('a0a1a2a3a4a5a6a7a8a9aaabacadaeaf', 'hex')
const PREAMBLE = '9346455252590d0a 0100 0000 00000000 00000000 f4e3d19a'

/** Made by a program of its own (Python's struct and zlib), from docs/protocol/wire.md and not from our encoder. */
const pinned: [frame: Frame, hex: string][] = [
  [{ type: 'snapshot', id }, '01000000 00000000 0000000000000000 09000000 41efba17 7765622d31 68898fbb'],
  [
    { type: 'image', channel: 7, name: imageName('core-1.img') },
    '02000000 07000000 0000000000000000 0e000000 47623dd8 636f72652d312e696d67 b222664e',
  ],
  [
    { type: 'data', channel: 7, offset: 0x0123456789ab, length: MOST_DATA },
    '03000000 07000000 ab89674523010000 00001000 2f103f64',
  ],
  [
    { type: 'packed', channel: 7, offset: 0x0123456789ab, codec: 'lz4', raw: MOST_DATA, length: 4097 },
    '0a000000 07000000 ab89674523010000 0a100000 9eacdaa5 0100001000 fccc80b1',
  ],
  [
    { type: 'zeros', channel: 7, offset: 0x0123456789ab, raw: MOST_DATA },
    '0b000000 07000000 ab89674523010000 08000000 23fc9276 00001000 4dcd866b',
  ],
  [
    { type: 'imageEnd', channel: 7, size: 4097, digest: 0x0123456789abcdefn },
    '04000000 07000000 0000000000000000 14000000 6948ba63 0110000000000000 efcdab8967452301 a578a827',
  ],
  [
    {
      type: 'snapshotEnd',
      images: [
        { name: imageName('a.img'), size: 1, digest: 0x11n },
        { name: imageName('inventory.img'), size: 0, digest: 0xef46db3751d8e999n },
      ],
      digest,
    },
    '05000000 00000000 0000000000000000 44000000 f8842930 02000000 05 612e696d67 0100000000000000 ' +
      '1100000000000000 0d 696e76656e746f72792e696d67 0000000000000000 99e9d85137db46ef ' +
      '1032547698badcfe cd6981d1',
  ],
  [
    { type: 'failed', code: 'FAILED_DUMP', reason: 'no inventory' },
    '06000000 00000000 0000000000000000 11000000 a2365363 00 6e6f20696e76656e746f7279 22c64215',
  ],
  [{ type: 'hello' }, '10000000 00000000 0000000000000000 04000000 ffa77160 00000000'],
  [
    { type: 'get', timeoutMs: 30000, id },
    '11000000 00000000 0000000000000000 0d000000 33d31e78 30750000 7765622d31 fd352551',
  ],
  [
    { type: 'get', timeoutMs: 0, id: undefined },
    '11000000 00000000 0000000000000000 08000000 0123c04f 00000000 1cdf4421',
  ],
  [{ type: 'ack', channel: 7, offset: 4097 }, '12000000 07000000 0110000000000000 04000000 a2a11562 00000000'],
  [{ type: 'sealed', digest }, '13000000 00000000 0000000000000000 0c000000 dac26c0a 1032547698badcfe 32e25d00'],
  [
    { type: 'refused', code: 'MEMORY', reason: 'full' },
    '14000000 00000000 0000000000000000 09000000 7b94f6dc 04 66756c6c 615a99f2',
  ],
  [{ type: 'handOver', until: 'running' }, '07000000 00000000 0000000000000000 05000000 2ccd4fd9 01 1bdf05a5'],
  [
    { type: 'handOver', until: 'sealed', token },
    '07000000 00000000 0000000000000000 15000000 b39a5689 00a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 879e7197',
  ],
  [
    { type: 'resume', offset: 4097, token, id },
    '08000000 00000000 0110000000000000 19000000 8edd4c8a a0a1a2a3a4a5a6a7a8a9aaabacadaeaf7765622d31 ac19c867',
  ],
  [{ type: 'ready' }, '15000000 00000000 0000000000000000 04000000 e077fb4b 00000000'],
  [
    { type: 'verdict', verdict: 'copy', token, id },
    '16000000 00000000 0000000000000000 1a000000 861a9454 02 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 7765622d31 47a4b5a0',
  ],
  [{ type: 'fate', fate: 'running' }, '17000000 00000000 0000000000000000 05000000 09668939 01 1bdf05a5'],
  [{ type: 'got', offset: 0x0123456789ab }, '18000000 00000000 ab89674523010000 04000000 015dd28e 00000000'],
  [{ type: 'reserve', offset: 0x0123456789ab }, '09000000 00000000 ab89674523010000 04000000 62cd730b 00000000'],
  [
    { type: 'layer', under: 3, last: true, token },
    '0d000000 00000000 0300000000000000 15000000 7de8dda9 01 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf c455d710',
  ],
  [{ type: 'unchecked' }, '0f000000 00000000 0000000000000000 04000000 fb7c28fc 00000000'],
  [{ type: 'reserved', offset: 2 ** 30 }, '19000000 00000000 0000004000000000 04000000 0c495f46 00000000'],
  [
    { type: 'join', token, index: 3, count: 4 },
    '0c000000 00000000 0000000000000000 16000000 25ae91a9 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 0304 b9a4ffb3',
  ],
  [{ type: 'joined' }, '1a000000 00000000 0000000000000000 04000000 c1076437 00000000'],
  [{ type: 'list' }, '0e000000 00000000 0000000000000000 04000000 bd474f99 00000000'],
  [
    {
      type: 'listed',
      total: 2,
      holdings: [
        { id, state: 'sealed', pinned: true, count: 12, bytes: 0x0123456789ab, shared: 0x1000, seconds: 33 },
        { id: snapshotId('c'), state: 'chain', pinned: false, count: 3, bytes: 0, shared: 0, seconds: 0 },
      ],
    },
    '1b000000 00000000 0000000000000000 42000000 663b7cec 02000000 05 7765622d31 81 0c000000 ' +
      'ab89674523010000 0010000000000000 21000000 01 63 08 03000000 0000000000000000 0000000000000000 ' +
      '00000000 df9312eb',
  ],
  [{ type: 'recall', offset: 0x8000 }, '1d000000 00000000 0080000000000000 04000000 cd94c1a1 00000000'],
  [
    { type: 'recalled', offers: true, total: 3, digests: Uint32Array.of(1, 2, 3, 4, 0xffffffff) },
    '1e000000 00000000 0000000000000000 1d000000 8df49854 01 03000000 01000000 02000000 03000000 ' +
      '04000000 ffffffff 65d5f2db',
  ],
  [
    { type: 'same', channel: 2, offset: 8192, source: 0, first: 0x0102030405, pages: 256 },
    '1f000000 02000000 0020000000000000 14000000 f52acb4d 00000000 0504030201000000 00010000 ebb668cc',
  ],
  [{ type: 'pin', id, pinned: true }, '20000000 00000000 0000000000000000 0a000000 e22b947a 01 7765622d31 730c3307'],
  [{ type: 'remove', id }, '1c000000 00000000 0000000000000000 09000000 c9422d41 7765622d31 68898fbb'],
]

function fromHex(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

function decode(bytes: Buffer): Frame {
  return decodeFrame(decodeHeader(bytes.subarray(0, HEADER_BYTES)), bytes.subarray(HEADER_BYTES))
}

/** Makes a crc over the bytes before `at` and puts it there. */
function seal(bytes: Buffer, at: number): Buffer {
  bytes.writeUInt32LE(crc32(bytes.subarray(0, at)), at)
  return bytes
}

/** A header with any numbers and a crc that holds. */
const addressed = (type: number): number => ([2, 3, 4, 10, 11, 18, 31].includes(type) ? 1 : 0)

/** A header with a crc that holds; frames that speak of an image are given channel 1. */
function header({ type = 1, zeros = 0, channel = addressed(type), offset = 0n, length = 5 }): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  bytes.writeUInt8(type, 0)
  bytes.writeUIntLE(zeros, 1, 3)
  bytes.writeUInt32LE(channel, 4)
  bytes.writeBigUInt64LE(offset, 8)
  bytes.writeUInt32LE(length, 16)
  return seal(bytes, 20)
}

/** Decodes a payload of any bytes, with a crc that holds. */
function decodeBody(type: keyof typeof frameType, body: Uint8Array): Frame {
  const payload = seal(Buffer.concat([body, Buffer.alloc(4)]), body.length)
  return decodeFrame(decodeHeader(header({ type: frameType[type], length: payload.length })), payload)
}

function flipped(bytes: Buffer, bit: number): Buffer {
  const copy = Buffer.from(bytes)
  copy.writeUInt8(copy.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
  return copy
}

test('the preamble is pinned', () => {
  assert.is(encodePreamble().toString('hex'), PREAMBLE.replaceAll(' ', ''))
  assert.is(encodePreamble().length, PREAMBLE_BYTES)
  checkPreamble(fromHex(PREAMBLE))
})

test('a preamble with one wrong bit is refused', () => {
  for (let bit = 0; bit < 8 * PREAMBLE_BYTES; bit++) {
    throwsFault('FORMAT', () => checkPreamble(flipped(fromHex(PREAMBLE), bit)), `bit ${bit}`)
  }
})

test('another version or an unknown required feature is refused, an optional one is not', () => {
  const change = (at: number, value: number): Buffer => {
    const bytes = encodePreamble()
    bytes.writeUInt8(value, at)
    return seal(bytes, 20)
  }
  for (const [at, value] of [
    [8, 0],
    [8, 2],
    [9, 1],
    [12, 1],
    [15, 0x80],
  ] as const) {
    const { message } = throwsFault('VERSION', () => checkPreamble(change(at, value)), `byte ${at}`)
    assert.not.match(message, '-', 'numbers without a sign')
  }
  checkPreamble(change(16, 1))
  checkPreamble(change(19, 0x80))
})

for (const [frame, hex] of pinned) {
  test(`${frame.type}: the bytes are pinned, both ways`, () => {
    assert.is(encodeFrame(frame).toString('hex'), hex.replaceAll(' ', ''))
    assert.equal(decode(fromHex(hex)), frame)
    assert.equal(encodeFrame(decode(fromHex(hex))), fromHex(hex))
  })

  test(`${frame.type}: one wrong bit is refused`, () => {
    const bytes = fromHex(hex)
    for (let bit = 0; bit < 8 * bytes.length; bit++)
      throwsFault('FORMAT', () => decode(flipped(bytes, bit)), `bit ${bit}`)
  })
}

test('every frame type is pinned', () => {
  assert.equal(new Set(pinned.map(([frame]) => frame.type)), new Set(Object.keys(frameType)))
})

test('an unknown type and reserved bits are refused', () => {
  const known = new Set<number>(Object.values(frameType))
  for (let type = 0; type < 256; type++) {
    if (!known.has(type)) throwsFault('FORMAT', () => decodeHeader(header({ type })), `type ${type}`)
  }
  for (let bit = 0; bit < 24; bit++)
    throwsFault('FORMAT', () => decodeHeader(header({ zeros: 2 ** bit })), `bit ${bit}`)
})

test('a length outside of its limits is refused from the header alone', () => {
  const list = 4 + MOST_IMAGES * 145 + 8 + 4
  const limits = {
    snapshot: [5, 68],
    image: [5, 132],
    data: [1, 2 ** 20],
    packed: [10, 9 + 2 ** 20],
    zeros: [8, 8],
    imageEnd: [20, 20],
    snapshotEnd: [16, list],
    failed: [5, 517],
    hello: [4, 4],
    get: [8, 72],
    ack: [4, 4],
    sealed: [12, 12],
    refused: [5, 517],
    handOver: [5, 21],
    resume: [21, 84],
    ready: [4, 4],
    verdict: [22, 85],
    fate: [5, 5],
    got: [4, 4],
    reserve: [4, 4],
    reserved: [4, 4],
    unchecked: [4, 4],
    layer: [21, 21],
    join: [22, 22],
    joined: [4, 4],
    list: [4, 4],
    listed: [8, 4 + 4096 * 90 + 4],
    remove: [5, 68],
    pin: [6, 69],
    recall: [4, 4],
    recalled: [9, 9 + 2 ** 15 * 20],
    same: [20, 20],
  } as const
  assert.equal(new Set(Object.keys(limits)), new Set(Object.keys(frameType)))
  for (const [name, [least, most]] of Object.entries(limits)) {
    const type = frameType[name as keyof typeof frameType]
    for (const length of [least, most]) assert.is(decodeHeader(header({ type, length })).length, length)
    throwsFault('FORMAT', () => decodeHeader(header({ type, length: least - 1 })), name)
    for (const length of [most + 1, 16 * 2 ** 20, 2 ** 32 - 1]) {
      throwsFault('LIMIT', () => decodeHeader(header({ type, length })), `${name} ${length}`)
    }
  }
})

test('an offset and a size have a limit', () => {
  const largest = BigInt(LARGEST_IMAGE)
  assert.is(decodeHeader(header({ type: frameType.data, offset: largest })).offset, LARGEST_IMAGE)
  throwsFault('LIMIT', () => decodeHeader(header({ type: frameType.data, offset: largest + 1n })))
  const end = (size: bigint): Frame => {
    const body = Buffer.alloc(16)
    body.writeBigUInt64LE(size)
    return decodeBody('imageEnd', body)
  }
  assert.equal(end(largest), { type: 'imageEnd', channel: 1, size: LARGEST_IMAGE, digest: 0n })
  throwsFault('LIMIT', () => end(largest + 1n))
  throwsFault('LIMIT', () => end(2n ** 64n - 1n))
})

test('rounds of a chain have a limit', () => {
  const layer = (under: bigint): Frame => {
    const head = decodeHeader(header({ type: frameType.layer, offset: under, length: 21 }))
    return decodeFrame(head, seal(Buffer.alloc(21), 17))
  }
  assert.equal(layer(1000n), { type: 'layer', under: 1000, last: false, token: NO_TOKEN })
  throwsFault('LIMIT', () => layer(1001n))
  throwsFault('LIMIT', () => layer(2n ** 48n))
})

test('names from the wire pass the one door', () => {
  for (const name of ['..', '../x', 'a/b', '.a', 'a\0b', 'caf\xe9', ' ']) {
    const body = Buffer.from(name, 'latin1')
    throwsFault('NAME', () => decodeBody('image', body), name)
    throwsFault('NAME', () => decodeBody('snapshot', body), name)
    throwsFault('NAME', () => decodeBody('remove', body), name)
    throwsFault('NAME', () => decodeBody('get', Buffer.concat([Buffer.alloc(4), body])), name)
    const images = [{ name: body.toString('latin1') as ImageName, size: 0, digest: 0n }]
    if (name !== 'caf\xe9') {
      throwsFault(
        'NAME',
        () => decodeBody('snapshotEnd', Buffer.concat([encodeImageList(images), Buffer.alloc(8)])),
        name,
      )
    }
  }
  throwsFault('NAME', () => decode(encodeFrame({ type: 'snapshot', id: '../x' as SnapshotId })))
})

test('a word that has no meaning, and a token of another length, are refused', () => {
  for (const [type, words] of [
    ['handOver', 2],
    ['verdict', 3],
    ['fate', 3],
    ['layer', 2],
  ] as const) {
    const body = (word: number): Buffer =>
      Buffer.concat([
        Buffer.of(word),
        type === 'verdict' ? Buffer.concat([NO_TOKEN, Buffer.from(id)]) : Buffer.alloc(type === 'layer' ? 16 : 0),
      ])
    for (let word = 0; word < 256; word++) {
      if (word < words) assert.is(decodeBody(type, body(word)).type, type)
      else throwsFault('FORMAT', () => decodeBody(type, body(word)), `${type} ${word}`)
    }
  }
  for (let length = 1; length < 16; length++) {
    throwsFault('FORMAT', () => decodeBody('handOver', Buffer.alloc(1 + length)), `a token of ${length} bytes`)
  }
  throwsFault('NAME', () => decodeBody('resume', Buffer.concat([token, Buffer.from('../x')])))
  throwsFault('NAME', () => decodeBody('verdict', Buffer.concat([Buffer.of(0), NO_TOKEN, Buffer.from('../x')])))
})

/** A frame that stands for `raw` bytes, with a crc that holds. */
function standsFor(type: 'packed' | 'zeros', raw: number, codec = 0): Frame {
  const body = Buffer.alloc(type === 'packed' ? 5 : 4)
  if (type === 'packed') body.writeUInt8(codec)
  body.writeUInt32LE(raw, body.length - 4)
  const length = body.length + 4 + (type === 'packed' ? 1 : 0)
  const head = decodeHeader(header({ type: frameType[type], length }))
  return decodeFrame(head, seal(Buffer.concat([body, Buffer.alloc(4)]), body.length))
}

test('few bytes stand for at most as many as a data frame has, and a codec is one that has a number', () => {
  for (const type of ['packed', 'zeros'] as const) {
    for (const raw of [1, 4096, MOST_DATA]) assert.is((standsFor(type, raw) as { raw: number }).raw, raw)
    throwsFault('FORMAT', () => standsFor(type, 0), type)
    for (const raw of [MOST_DATA + 1, 2 ** 31, 2 ** 32 - 1]) throwsFault('LIMIT', () => standsFor(type, raw), type)
  }
  const codecs = [0, 1].map((codec) => (standsFor('packed', 1, codec) as { codec: string }).codec)
  assert.equal(codecs, ['zstd', 'lz4'])
  for (let codec = 2; codec < 256; codec++) throwsFault('FORMAT', () => standsFor('packed', 1, codec), `codec ${codec}`)
})

test('random heads of packed bytes give a Fault or a frame that survives the way back', () => {
  let accepted = 0
  const head = fc.record({ codec: fc.nat(3), raw: fc.oneof(fc.nat(2 ** 32 - 1), fc.nat(MOST_DATA)) })
  fc.assert(
    fc.property(head, ({ codec, raw }) => {
      const frame = onlyFaults(() => standsFor('packed', raw, codec))
      if (frame === undefined) return
      accepted++
      assert.equal(decode(encodeFrame(frame)), frame)
    }),
    { numRuns: 500 },
  )
  assert.ok(accepted > 20, `only ${accepted} were accepted`)
})

test('a list that is cut, or counts wrongly, is refused', () => {
  const images = ['a.img', 'b.img'].map((name) => ({ name: imageName(name), size: 3, digest: 1n }))
  const list = encodeImageList(images)
  const body = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(8)])
  assert.equal(decodeBody('snapshotEnd', body(list)), { type: 'snapshotEnd', images, digest: 0n })
  for (let cut = 4; cut < list.length; cut++) {
    throwsFault('FORMAT', () => decodeBody('snapshotEnd', body(list.subarray(0, cut))), `cut at ${cut}`)
  }
  for (const count of [0, 1, 3, 2 ** 16, 2 ** 16 + 1, 2 ** 32 - 1]) {
    const wrong = Buffer.from(list)
    wrong.writeUInt32LE(count)
    throwsFault(count > 2 ** 16 ? 'LIMIT' : 'FORMAT', () => decodeBody('snapshotEnd', body(wrong)), `count ${count}`)
  }
  throwsFault('FORMAT', () => decodeBody('snapshotEnd', body(Buffer.concat([list, Buffer.of(0)]))), 'a byte too many')
})

test('connections that join: 2 to 16, each with a place', () => {
  const join = (index: number, count: number) => () =>
    decodeBody('join', Buffer.concat([token, Buffer.of(index, count)]))
  for (let count = 0; count < 256; count++) {
    for (const index of [0, 1, count - 1, count, 255].filter((each) => each >= 0 && each < 256)) {
      if (count > 16) throwsFault('LIMIT', join(index, count), `${index} of ${count}`)
      else if (count < 2 || index >= count) throwsFault('FORMAT', join(index, count), `${index} of ${count}`)
      else assert.equal(join(index, count)(), { type: 'join', token, index, count })
    }
  }
})

test('a reason is cut to what a frame may hold', () => {
  for (const letter of ['x', 'é', '€', '😀']) {
    const bytes = encodeFrame({ type: 'refused', code: 'REFUSED', reason: letter.repeat(600) })
    const frame = decode(bytes)
    assert.ok(frame.type === 'refused' && frame.reason.startsWith(letter.repeat(100)), letter)
    assert.ok(bytes.length <= HEADER_BYTES + 517, `${bytes.length} bytes`)
  }
})

test('a reason of an unknown code is a refusal', () => {
  assert.equal(decodeBody('refused', Buffer.from([200, 0x6e, 0x6f])), {
    type: 'refused',
    code: 'REFUSED',
    reason: 'no',
  })
})

// Fuzz: whatever comes, a Fault or a frame, and never anything else.

const runs = { numRuns: 3000 }
const types = fc.constantFrom(...(Object.keys(frameType) as (keyof typeof frameType)[]))

test('random headers give a Fault or a header', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: HEADER_BYTES, maxLength: HEADER_BYTES }), fc.boolean(), (bytes, repair) => {
      const header = Buffer.from(bytes)
      onlyFaults(() => decodeHeader(repair ? seal(header, 20) : header))
    }),
    runs,
  )
})

test('random numbers in a header with a crc that holds give a Fault or those numbers', () => {
  const numbers = fc.record({
    type: fc.constantFrom(...Object.values(frameType)),
    channel: fc.nat(2 ** 32 - 1),
    offset: fc.bigInt(0n, 2n ** 49n),
    length: fc.oneof(fc.nat(600), fc.nat(2 ** 32 - 1)),
  })
  let accepted = 0
  fc.assert(
    fc.property(numbers, (given) => {
      const got = onlyFaults(() => decodeHeader(header(given)))
      if (got === undefined) return
      accepted++
      assert.equal([got.channel, BigInt(got.offset), got.length], [given.channel, given.offset, given.length])
    }),
    runs,
  )
  assert.ok(accepted > 20, `only ${accepted} were accepted`)
})

test('random payloads with a crc that holds give a Fault or a frame that survives the way back', () => {
  let accepted = 0
  const text = fc.string({ unit: fc.constantFrom('a', '1', '.', '-', '/'), maxLength: 70 })
  const body = fc.oneof(
    fc.uint8Array({ maxLength: 80 }),
    text.map((ascii) => Buffer.from(ascii)),
  )
  fc.assert(
    fc.property(types, body, (type, bytes) => {
      // Of these the bytes come apart.
      if (type === 'data' || type === 'packed') return
      const frame = onlyFaults(() => decodeBody(type, bytes))
      if (frame === undefined) return
      accepted++
      assert.equal(decode(encodeFrame(frame)).type, type)
    }),
    runs,
  )
  assert.ok(accepted > 20, `only ${accepted} were accepted`)
})

test('frames with random changes give a Fault or a frame', () => {
  const change = fc.tuple(fc.nat(120), fc.nat(255))
  fc.assert(
    fc.property(fc.constantFrom(...pinned), fc.array(change, { minLength: 1, maxLength: 8 }), ([, hex], changes) => {
      const bytes = fromHex(hex)
      for (const [at, value] of changes) bytes.writeUInt8(value, at % bytes.length)
      seal(bytes, 20)
      onlyFaults(() => {
        const head = decodeHeader(bytes.subarray(0, HEADER_BYTES))
        if (head.type === 'data') return
        const payload = Buffer.alloc(headBytes(head))
        bytes.copy(payload, 0, HEADER_BYTES)
        decodeFrame(head, seal(payload, payload.length - 4))
      })
    }),
    runs,
  )
})

test('a list of any images comes back the same', () => {
  const name = fc.stringMatching(/^[a-z0-9_][a-z0-9._+:@=-]{0,127}$/).map(imageName)
  const u64 = fc.bigInt(0n, 2n ** 64n - 1n)
  const size = fc.maxSafeNat().map((bytes) => bytes % (LARGEST_IMAGE + 1))
  const entry = fc.record({ name, size, digest: u64 }, { noNullPrototype: true })
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 20 }), u64, (images, digest) => {
      const frame: Frame = { type: 'snapshotEnd', images, digest }
      assert.equal(decode(encodeFrame(frame)), frame)
    }),
    { numRuns: 300 },
  )
})

test.run()
