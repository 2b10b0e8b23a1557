/** What is compressed on its way: every byte arrives, whatever it is made of; what lies is refused. */

import { Readable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { encodeFrame, type Frame, frameType, MOST_DATA } from '../../lib/format/frame.ts'
import type { ImageName } from '../../lib/format/names.ts'
import { compressor } from '../../lib/kernel/codec.ts'
import { makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'
import type { Compress } from '../../lib/stream/compress.ts'
import { frameReader, frameWriter } from '../../lib/stream/frames.ts'
import type { ImageSink, ImageSource } from '../../lib/stream/image.ts'
import type { Link, Outlet } from '../../lib/stream/link.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import { onlyFaults, reasonOf, rejectsFault, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { anyFrame } from '../support/any-frame.ts'
import {
  bytesOf,
  contents,
  data,
  end,
  entry,
  type Given,
  id,
  image,
  inletOf,
  pipeLinks,
  pool,
  receive,
  receiveBytes,
  sourceOf,
  stream,
  streamLinks,
} from './snapshots.ts'

const test = suite('stream/compress')

const MIB = 2 ** 20
const PAGE = 4096
const zeros = (bytes: number): Buffer => Buffer.alloc(bytes)
const text = (bytes: number): Buffer => Buffer.alloc(bytes, 'the quick brown fox jumps over the lazy dog\n')
const noise = (bytes: number): Buffer => bytesOf('noise', bytes)

/** By name, in pieces that divide nothing. */
const made: Record<string, Buffer> = {
  'empty.img': zeros(0),
  'byte.img': text(1),
  'small.img': text(3000),
  'text.img': text(3 * MIB + 17),
  'noise.img': noise(3 * MIB + 17),
  'zeros.img': zeros(3 * MIB + 17),
  'mixed.img': Buffer.concat([
    ...[text(40 * PAGE), zeros(40 * PAGE), noise(40 * PAGE), zeros(8 * PAGE), text(9)],
    ...[zeros(100 * PAGE), text(1), noise(2 * MIB), zeros(17 * PAGE + 1)],
  ]),
}

function given(kind: Given['kind'], step: number): Given[] {
  const all = Object.entries(made).map(([name, bytes]) => ({ name, bytes, kind, step }))
  return [...all, image('inventory.img', 60, kind, 7)]
}

/** Sends over a fresh link and closes it. */
async function send(from: Link, source: ImageSource, compress: Compress): Promise<void> {
  await sendSnapshot(frameWriter(from.outlet), id, source, { compress })
  await from.outlet.finish()
}

const roads = { 'a pipe of the kernel': pipeLinks, 'a Node stream': streamLinks }
for (const [road, open] of Object.entries(roads)) {
  for (const compress of ['zstd', 'lz4', 'auto'] as const) {
    test(`${compress} over ${road}: every byte arrives`, async () => {
      for (const images of [given('pipe', 99_991), given('pieces', 1_500_007)]) {
        const before = pool.used
        const { from, to } = open()
        const sink = new MemorySnapshot(pool)
        const sending = send(from, sourceOf(images), compress).finally(() => from !== to && from.destroy())
        await within(Promise.all([sending, receive(to.inlet, sink)]))
        const got = contents(sink)
        assert.is(got.size, images.length)
        for (const { name, bytes } of images) assert.ok(got.get(name)?.equals(bytes), name)
        to.destroy()
        sink.drop()
        assert.is(pool.used, before)
      }
    })
  }
}

/** What `images` become. */
async function sent(images: readonly Given[], compress: Compress): Promise<Buffer> {
  const { from, to } = pipeLinks()
  const chunks: Buffer[] = []
  const read = async (): Promise<void> => {
    for (const into = Buffer.alloc(MIB); ; ) {
      const got = await to.inlet.read(into)
      if (got === 0) return
      chunks.push(Buffer.from(into.subarray(0, got)))
    }
  }
  const sending = send(from, sourceOf(images), compress).finally(() => from.destroy())
  await within(Promise.all([sending, read()]))
  to.destroy()
  return Buffer.concat(chunks)
}

/** The frames of a stream that say what an image is made of. */
async function framesOf(bytes: Uint8Array): Promise<Frame[]> {
  const reader = frameReader(inletOf(bytes))
  const frames: Frame[] = []
  for (;;) {
    const frame = await reader.next(anyFrame)
    if (frame === undefined) return frames
    if (frame.type === 'data' || frame.type === 'packed') await reader.inlet.fill(Buffer.alloc(frame.length))
    if (frame.type === 'data' || frame.type === 'packed' || frame.type === 'zeros') frames.push(frame)
  }
}

const only = (bytes: Uint8Array): Given[] => [{ name: 'inventory.img', bytes, kind: 'pieces', step: MIB }]

test('text is packed, noise goes as it is, and zeros do not go at all', async () => {
  for (const compress of ['zstd', 'lz4'] as const) {
    const types = async (bytes: Buffer): Promise<string[]> =>
      (await framesOf(await sent(only(bytes), compress))).map((frame) =>
        frame.type === 'packed' ? frame.codec : frame.type,
      )
    assert.equal(await types(text(2 * MIB)), [compress, compress])
    assert.equal(await types(noise(2 * MIB)), ['data', 'data'])
    assert.equal(await types(zeros(2 * MIB)), ['zeros', 'zeros'])
    assert.equal(await types(text(100)), ['data'])
    const parts = [text(40 * PAGE), zeros(40 * PAGE), noise(40 * PAGE)]
    assert.equal(await types(Buffer.concat(parts)), [compress, 'zeros', 'data'])
    const size = (await sent(only(text(8 * MIB)), compress)).length
    assert.ok(size < MIB, `${size} bytes`)
  }
})

test('what takes no time does not overtake what does', async () => {
  const bytes = Buffer.concat(Array.from({ length: 12 }, (_, at) => (at % 2 === 0 ? text(MIB) : zeros(MIB))))
  const images: Given[] = [{ name: 'inventory.img', bytes, kind: 'pipe', step: MIB }]
  const stream = await sent(images, 'zstd')
  const kinds = new Set((await framesOf(stream)).map(({ type }) => type))
  assert.ok(kinds.has('packed') && kinds.has('zeros'))
  assert.is((await receiveBytes(stream)).bytes, bytes.length)
})

test('auto leaves a fast link alone', async () => {
  const frames = await framesOf(await sent(only(text(64 * MIB)), 'auto'))
  assert.is(frames.length, 64)
  assert.ok(frames.every(({ type }) => type === 'data'))
})

test('auto compresses on a slow link what shrinks, and nothing else', async () => {
  const chunks: Buffer[] = []
  const slow: Outlet = {
    async send(bytes) {
      // 16 MiB a second.
      await setTimeout(bytes.length / 2 ** 14)
      chunks.push(Buffer.from(bytes))
    },
    settle: async () => {},
    finish: async () => {},
  }
  const images = only(Buffer.concat([noise(5 * MIB), text(20 * MIB), noise(3 * MIB)]))
  await within(sendSnapshot(frameWriter(slow), id, sourceOf(images), { compress: 'auto' }))
  const bytes = Buffer.concat(chunks)
  const frames = await framesOf(bytes)
  const packed = frames.flatMap((frame) => (frame.type === 'packed' ? [frame.offset / MIB] : []))
  assert.ok(packed.length > 10, `${packed.length} frames`)
  assert.ok(
    packed.every((at) => at >= 5 && at < 25),
    `at ${packed}`,
  )
  const sink = new MemorySnapshot(pool)
  await within(receive(inletOf(bytes), sink))
  assert.ok(
    contents(sink)
      .get('inventory.img')
      ?.equals(images[0]?.bytes as Buffer),
  )
  sink.drop()
})

test('a link that is cut ends a sender that compresses, wherever it is', async () => {
  const before = openFds()
  for (const bytes of [0, 24, 54, 100, 70_000, 3 * MIB]) {
    const { from, to } = pipeLinks()
    const big = noise(8 * MIB)
    const images: Given[] = [
      { name: 'a.img', bytes: big, kind: 'pipe', step: MIB },
      { name: 'b.img', bytes: big, kind: 'pieces', step: MIB },
      { name: 'c.img', bytes: text(8 * MIB), kind: 'pipe', step: MIB },
      image('inventory.img', 9, 'pipe'),
    ]
    const source = sourceOf(images)
    const sending = sendSnapshot(frameWriter(from.outlet), id, source, { compress: 'zstd' })
    sending.catch(() => {})
    await within(to.inlet.fill(Buffer.alloc(bytes)))
    to.destroy()
    await rejectsFault('LINK', sending, `after ${bytes} bytes`)
    await within(source.written)
    from.destroy()
  }
  assert.is(openFds(), before)
})

test('a link that is cut while CRIU says nothing ends a sender that compresses', async () => {
  const [out, into] = makePipe()
  await writeAll(into, text(5000))
  const name = 'inventory.img' as ImageName
  const images = Readable.from([{ name, body: { kind: 'pipe' as const, fd: out } }])
  const reason = new Fault('LINK', 'cut')
  const broken: Outlet = {
    async send(bytes, more) {
      if (more === true && bytes.length < 100 && bytes[0] === frameType.packed) throw reason
    },
    settle: async () => {},
    finish: async () => {},
  }
  const sending = sendSnapshot(frameWriter(broken), id, { images, destroy() {} }, { compress: 'lz4' })
  assert.is(await reasonOf(sending), reason)
  closeFd(into)
})

/** A `packed` frame and its bytes. */
function packed(codec: 'zstd' | 'lz4', offset: number, bytes: Buffer, raw = bytes.length): Buffer {
  const coder = compressor(codec)
  const room = Buffer.alloc(bytes.length + 1000)
  const length = coder.now(bytes, room)
  coder.close()
  const head = encodeFrame({ type: 'packed', channel: 1, offset, codec, raw, length })
  return Buffer.concat([head, room.subarray(0, length)])
}

const opened: Frame = { type: 'image', channel: 1, name: 'inventory.img' as ImageName }
const zeroPages = (offset: number, raw: number, channel = 1): Frame => ({ type: 'zeros', channel, offset, raw })

function inventory(...parts: (Frame | Buffer)[]): Buffer {
  return stream({ type: 'snapshot', id }, opened, ...parts)
}

/** The same with the end that belongs to `bytes`. */
function whole(bytes: Buffer, ...parts: (Frame | Buffer)[]): Buffer {
  const said = entry('inventory.img', bytes)
  return inventory(...parts, { type: 'imageEnd', channel: 1, size: said.size, digest: said.digest }, end(said))
}

const abc = text(3000)
const image3 = Buffer.concat([abc, zeros(5000), abc, noise(10)])
const small = whole(
  image3,
  packed('zstd', 0, abc),
  zeroPages(3000, 5000),
  packed('lz4', 8000, abc),
  data(1, 11_000, noise(10)),
)

test('packed bytes, zeros and bytes as they are make one image, one byte at a time as well', async () => {
  assert.is((await within(receiveBytes(small))).bytes, image3.length)
  const sink = new MemorySnapshot(pool)
  await within(receive(inletOf(small, 1), sink))
  assert.ok(contents(sink).get('inventory.img')?.equals(image3))
  sink.drop()
})

test('an image of packed bytes goes over the edges of the memory that it rests in', async () => {
  const parts: (Frame | Buffer)[] = []
  const bytes: Buffer[] = []
  for (let at = 0; at < 7 * MIB; ) {
    const piece = Buffer.alloc(MIB - 12_345, `piece at ${at}`)
    parts.push(packed('lz4', at, piece), zeroPages(at + piece.length, 77_777))
    bytes.push(piece, zeros(77_777))
    at += piece.length + 77_777
  }
  const all = Buffer.concat(bytes)
  const sink = new MemorySnapshot(pool)
  await within(receive(inletOf(whole(all, ...parts)), sink))
  assert.ok(contents(sink).get('inventory.img')?.equals(all))
  sink.drop()
})

test('a stream with packed bytes is TRUNCATED when it is cut, and a Fault with any one bit flipped', async () => {
  for (let cut = 0; cut < small.length; cut++) {
    await rejectsFault('TRUNCATED', receiveBytes(small.subarray(0, cut)), `cut at ${cut}`)
  }
  for (let bit = 0; bit < 8 * small.length; bit++) {
    const bytes = Buffer.from(small)
    bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))
    const sink = new MemorySnapshot(pool)
    try {
      // A codec may have more than one way to say the same.
      await receive(inletOf(bytes), sink)
      assert.ok(contents(sink).get('inventory.img')?.equals(image3), `bit ${bit}`)
    } catch (reason) {
      onlyFaults(() => {
        throw reason
      })
    }
    sink.drop()
  }
})

for (const [what, code, message, ...parts] of [
  ['packed bytes for less', 'DIGEST', 'is damaged: lz4 does not make 2999', packed('lz4', 0, abc, 2999)],
  ['packed bytes for more', 'DIGEST', 'is damaged: zstd does not make 3001', packed('zstd', 0, abc, 3001)],
  ['packed bytes of another codec', 'DIGEST', 'is damaged', mislabelled()],
  ['a gap before packed bytes', 'FORMAT', 'does not go on', packed('zstd', 1, abc)],
  ['packed bytes twice', 'FORMAT', 'does not go on', packed('zstd', 0, abc), packed('zstd', 0, abc)],
  ['a gap before zeros', 'FORMAT', 'does not go on', zeroPages(1, 1)],
  ['zeros twice', 'FORMAT', 'does not go on', zeroPages(0, 5), zeroPages(0, 5)],
  ['zeros on a channel that is not open', 'FORMAT', 'channel 2 is not open', zeroPages(0, 5, 2)],
  ['zeros beyond the largest image', 'FORMAT', 'does not go on', zeroPages(2 ** 48, 5)],
] as const) {
  test(`${what}: ${code}`, async () => {
    const { message: said } = await rejectsFault(code, receiveBytes(inventory(...parts)))
    assert.match(said, message)
  })
}

function mislabelled(): Buffer {
  const bytes = packed('zstd', 0, abc)
  const length = bytes.length - 33
  const head = encodeFrame({ type: 'packed', channel: 1, offset: 0, codec: 'lz4', raw: 3000, length })
  return Buffer.concat([head, bytes.subarray(33)])
}

test('zeros are written, whatever lay in the room, and a small room is enough', async () => {
  const rooms: Buffer[] = []
  const sink: ImageSink = {
    open: () => ({
      room(wanted) {
        rooms.push(Buffer.alloc(Math.min(wanted, 700), 0xaa))
        return rooms.at(-1) as Buffer
      },
      wrote: (bytes) => assert.is(bytes, rooms.at(-1)?.length),
      end() {},
    }),
  }
  await within(receive(inletOf(small), sink))
  assert.ok(rooms.length > 15)
})

test('zeros without end fill the memory that is allowed, and no more', async () => {
  const little = new Pool(8 * EXTENT)
  const frames = Array.from({ length: 1000 }, (_, at) => zeroPages(at * MOST_DATA, MOST_DATA))
  const sink = new MemorySnapshot(little)
  const { message } = await rejectsFault('MEMORY', receiveBytes(inventory(...frames), sink))
  assert.match(message, 'is full: 16.0 MiB of 16.0 MiB')
  assert.is(little.used, 0)
})

test.run()
