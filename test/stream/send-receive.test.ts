import net from 'node:net'
import { Readable, Writable } from 'node:stream'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { encodeFrame, type Frame, MOST_DATA } from '../../lib/format/frame.ts'
import { type ImageName, INVENTORY, imageName } from '../../lib/format/names.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { Snapshots } from '../../lib/store/snapshots.ts'
import { linkOverSocket } from '../../lib/stream/endpoint.ts'
import { frameReader, frameWriter } from '../../lib/stream/frames.ts'
import type { ImageSource } from '../../lib/stream/image.ts'
import type { Link } from '../../lib/stream/link.ts'
import { writableLink } from '../../lib/stream/node-link.ts'
import { receiveSnapshot } from '../../lib/stream/receive.ts'
import { type SendOptions, sendSnapshot } from '../../lib/stream/send.ts'
import { type Snapshot, summarize } from '../../lib/stream/summary.ts'
import { onlyFaults, reasonOf, rejectsFault, turns, within } from '../expect.ts'
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

const test = suite('stream/send-receive')

const MIB = 2 ** 20
const sizes = [0, 1, 4095, 4096, 4097, MOST_DATA - 1, MOST_DATA, MOST_DATA + 1, 5 * MIB]

/** Every size out of a pipe and out of pieces, in steps that divide nothing. */
const everySize: Given[] = [
  ...sizes.map((size) => image(`pipe-${size}.img`, size, 'pipe', 99_991)),
  ...sizes.map((size) => image(`pieces-${size}.img`, size, 'pieces', 1_500_007)),
  image('inventory.img', 60, 'pipe', 7),
]

const plain: Given[] = [image('core-1.img', 130), image('pages-1.img', 120), image('inventory.img', 50)]

async function tcpLinks(): Promise<{ from: Link; to: Link }> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const accepted = new Promise<net.Socket>((resolve) => server.once('connection', resolve))
  const client = net.connect({ port: (server.address() as net.AddressInfo).port, allowHalfOpen: true })
  client.pause()
  await new Promise((resolve) => client.once('connect', resolve))
  const links = { from: linkOverSocket(client, 'client'), to: linkOverSocket(await accepted, 'server') }
  server.close()
  return links
}

/** Sends all of `source` and hands everything to the kernel. */
async function send(link: Link, source: ImageSource, options?: SendOptions): Promise<Snapshot> {
  const snapshot = await sendSnapshot(frameWriter(link.outlet), id, source, options)
  await link.outlet.finish()
  return snapshot
}

/** The bytes that `source` becomes, and how the sending ended. */
async function sentBytes(source: ImageSource, options?: SendOptions): Promise<{ bytes: Buffer; error: unknown }> {
  const chunks: Buffer[] = []
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(Buffer.from(chunk))
      setImmediate(done)
    },
  })
  let error: unknown
  await within(
    send(writableLink(sink, 'bytes'), source, options).catch((reason: unknown) => {
      error = reason
    }),
  )
  return { bytes: Buffer.concat(chunks), error }
}

/** The frames of a stream; of data frames the header alone. */
async function framesOf(bytes: Uint8Array): Promise<Frame[]> {
  const reader = frameReader(inletOf(bytes))
  const frames: Frame[] = []
  for (;;) {
    const frame = await reader.next(anyFrame)
    if (frame === undefined) return frames
    frames.push(frame)
    if (frame.type === 'data') await reader.inlet.fill(Buffer.alloc(frame.length))
  }
}

const roads = { 'a pipe of the kernel': pipeLinks, 'a Node stream': streamLinks, 'a TCP socket': tcpLinks }

for (const [road, open] of Object.entries(roads)) {
  test(`${road}: images of every size, interleaved, arrive byte for byte`, async () => {
    const before = pool.used
    const { from, to } = await open()
    const source = sourceOf(everySize)
    const sink = new MemorySnapshot(pool)
    let passed = 0
    const onBytes = (bytes: number): void => {
      passed += bytes
    }
    const sending = send(from, source, { onBytes }).finally(() => {
      if (from !== to) from.destroy()
    })
    const [sent, received] = await within(Promise.all([sending, receive(to.inlet, sink)]))
    const total = everySize.reduce((sum, { bytes }) => sum + bytes.length, 0)
    assert.equal(received, { ...sent, id })
    assert.equal(
      sent.images.map(({ name }) => name),
      everySize.map(({ name }) => name),
    )
    assert.is(sent.bytes, total)
    assert.is(passed, total)
    assert.is(source.destroyed, undefined)
    const got = contents(sink)
    assert.is(got.size, everySize.length)
    for (const { name, bytes } of everySize) assert.ok(got.get(name)?.equals(bytes), name)
    // Frames are cut differently on every road; the digest is of the list of images, which is the same.
    assert.is(sent.digest, (await within(receiveBytes((await sentBytes(sourceOf(everySize))).bytes))).digest)
    to.destroy()
    sink.drop()
    assert.is(pool.used, before)
  })
}

test('a small stream is pinned', async () => {
  const inventory = { ...image('inventory.img', 0), bytes: Buffer.from('ferry') }
  const hex =
    '9346455252590d0a010000000000000000000000f4e3d19a' + // preamble
    '010000000000000000000000000000000600000017ffd94f7331f0381514' + // snapshot s1
    '02000000010000000000000000000000110000006a4cd683696e76656e746f72792e696d6731602b11' + // image inventory.img
    '0300000001000000000000000000000005000000e4b7ca396665727279' + // data
    '04000000010000000000000000000000140000008d212b300500000000000000676537b6e64bc3b962650bce' + // image end
    '050000000000000000000000000000002e0000009f93b264010000000d696e76656e746f72792e696d67' +
    '0500000000000000676537b6e64bc3b9b3c054d325f17ef8f9846d25' // snapshot end
  for (const kind of ['pieces', 'pipe'] as const) {
    const { bytes, error } = await sentBytes(sourceOf([{ ...inventory, kind }]))
    assert.is(error, undefined)
    assert.is(bytes.toString('hex'), hex, kind)
  }
  assert.is((await within(receiveBytes(Buffer.from(hex, 'hex')))).bytes, 5)
})

test('images take turns on the link, and frames are never above MOST_DATA', async () => {
  const images = [
    image('a.img', 2 * MIB, 'pipe', 4096),
    image('b.img', 2 * MIB, 'pipe', 4096),
    image('inventory.img', 9),
  ]
  const frames = await framesOf((await sentBytes(sourceOf(images))).bytes)
  const order = frames.flatMap((frame) => (frame.type === 'data' ? [frame.channel] : []))
  const turnsTaken = order.filter((channel, at) => at > 0 && channel !== order[at - 1]).length
  assert.ok(turnsTaken > 10, `channels: ${order.slice(0, 50).join(' ')}`)
  for (const frame of frames) if (frame.type === 'data') assert.ok(frame.length <= MOST_DATA)
  const large = await framesOf((await sentBytes(sourceOf([image('inventory.img', 3 * MIB, 'pieces', 3 * MIB)]))).bytes)
  assert.equal(
    large.flatMap((frame) => (frame.type === 'data' ? [frame.length] : [])),
    [MIB, MIB, MIB],
  )
})

const small = stream(
  { type: 'snapshot', id },
  ...plain.flatMap(({ name, bytes }, index) => [
    encodeFrame({ type: 'image', channel: index + 1, name: imageName(name) }),
    data(index + 1, 0, bytes.subarray(0, 40)),
    data(index + 1, 40, bytes.subarray(40)),
    encodeFrame({ type: 'imageEnd', channel: index + 1, size: bytes.length, digest: entry(name, bytes).digest }),
  ]),
  end(...plain.map(({ name, bytes }) => entry(name, bytes))),
)

test('one byte at a time', async () => {
  const sink = new MemorySnapshot(pool)
  const snapshot = await within(receive(inletOf(small, 1), sink))
  assert.is(snapshot.bytes, 300)
  for (const { name, bytes } of plain) assert.ok(contents(sink).get(name)?.equals(bytes), name)
  sink.drop()
})

test('a stream cut at any byte is TRUNCATED', async () => {
  for (let cut = 0; cut < small.length; cut++) {
    await rejectsFault('TRUNCATED', receiveBytes(small.subarray(0, cut)), `cut at ${cut}`)
  }
})

test('a stream with any one bit flipped is a Fault and is never sealed', async () => {
  const shelf = new Snapshots(pool)
  for (let bit = 0; bit < 8 * small.length; bit++) {
    const bytes = Buffer.from(small)
    bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))
    const arriving = shelf.receive(id)
    const reason = await reasonOf(
      receive(inletOf(bytes), arriving.sink).then(() => arriving.seal()),
      `bit ${bit}`,
    )
    onlyFaults(() => {
      throw reason
    })
    arriving.drop()
  }
  assert.not(shelf.has(undefined))
})

test('a byte after the end is TRAILING', async () => {
  await rejectsFault('TRAILING', receiveBytes(Buffer.concat([small, Buffer.of(0)])))
  await rejectsFault('TRAILING', receiveBytes(Buffer.concat([small, small])))
})

test('without inventory.img the dump failed, on both sides', async () => {
  const source = sourceOf([image('core-1.img', 100, 'pipe'), image('pages-1.img', 100)])
  const { bytes, error } = await sentBytes(source)
  assert.is((error as Fault).code, 'FAILED_DUMP')
  assert.is((await framesOf(bytes)).at(-1)?.type, 'failed')
  await rejectsFault('FAILED_DUMP', receiveBytes(bytes), 'what our sender says')
  const core = Buffer.from('core')
  const tidy = stream({ type: 'snapshot', id }, ...whole(1, 'core-1.img', core), end(entry('core-1.img', core)))
  await rejectsFault('FAILED_DUMP', receiveBytes(tidy), 'however tidy it looks')
  await rejectsFault('FAILED_DUMP', receiveBytes(stream({ type: 'snapshot', id }, end())), 'no image at all')
  assert.is(((await sentBytes(sourceOf([]))).error as Fault).code, 'FAILED_DUMP')
})

/** The frames of one image. */
function whole(channel: number, name: string, bytes: Uint8Array): (Frame | Uint8Array)[] {
  const { size, digest } = entry(name, bytes)
  return [
    { type: 'image', channel, name: name as ImageName },
    ...(bytes.length > 0 ? [data(channel, 0, bytes)] : []),
    { type: 'imageEnd', channel, size, digest },
  ]
}

const abc = Buffer.from('abc')
const inventory = entry('inventory.img', abc)
const open: Frame = { type: 'image', channel: 1, name: inventory.name }
const close: Frame = { type: 'imageEnd', channel: 1, size: 3, digest: inventory.digest }
const many = Array.from(
  { length: 65 },
  (_, at): Frame => ({ type: 'image', channel: at + 1, name: imageName(`i${at}`) }),
)
const other = imageName('other.img')

/** What a sender must not do, each as the frames after `snapshot`. */
const wrongs: [what: string, code: Fault['code'], message: string, ...parts: (Frame | Uint8Array)[]][] = [
  ['data on a channel that was never opened', 'FORMAT', 'channel 1 is not open', data(1, 0, abc)],
  ['data on channel 0', 'FORMAT', 'numbers that do not belong', open, data(0, 0, abc)],
  [
    'data on a channel that has ended',
    'FORMAT',
    'channel 1 is not open',
    open,
    data(1, 0, abc),
    close,
    data(1, 3, abc),
  ],
  ['an end on a channel that was never opened', 'FORMAT', 'channel 1 is not open', close],
  ['an end that comes twice', 'FORMAT', 'channel 1 is not open', open, data(1, 0, abc), close, close],
  ['a first channel that is not 1', 'FORMAT', 'numbers that do not belong', { ...open, channel: 0 }],
  [
    'a channel number that is skipped',
    'FORMAT',
    'not numbered in order',
    open,
    { type: 'image', channel: 3, name: other },
  ],
  [
    'a channel number that is used again',
    'FORMAT',
    'not numbered in order',
    open,
    data(1, 0, abc),
    close,
    { type: 'image', channel: 1, name: other },
  ],
  ['the same image while it is open', 'FORMAT', 'inventory.img comes twice', open, { ...open, channel: 2 }],
  [
    'the same image after its end',
    'FORMAT',
    'inventory.img comes twice',
    open,
    data(1, 0, abc),
    close,
    { ...open, channel: 2 },
  ],
  ['a gap', 'FORMAT', 'does not go on where it ended', open, data(1, 0, abc), data(1, 4, abc)],
  ['an overlap', 'FORMAT', 'does not go on where it ended', open, data(1, 0, abc), data(1, 2, abc)],
  ['a first offset that is not 0', 'FORMAT', 'does not go on where it ended', open, data(1, 1, abc)],
  [
    'an end with a size too small',
    'DIGEST',
    '3 bytes, digest 44bc2cf5ad770999; announced 2',
    open,
    data(1, 0, abc),
    { ...close, size: 2 },
  ],
  ['an end with a size too large', 'DIGEST', 'announced 4', open, data(1, 0, abc), { ...close, size: 4 }],
  [
    'an end with another digest',
    'DIGEST',
    'announced 3, 44bc2cf5ad770998',
    open,
    data(1, 0, abc),
    { ...close, digest: close.digest ^ 1n },
  ],
  ['the end while an image is open', 'FORMAT', 'while images are open', open, data(1, 0, abc), end(inventory)],
  [
    'a list with an image too many',
    'DIGEST',
    'is not what came',
    open,
    data(1, 0, abc),
    close,
    end(inventory, entry('other.img', abc)),
  ],
  [
    'a list with an image too few',
    'DIGEST',
    'is not what came',
    ...whole(1, 'a.img', abc),
    ...whole(2, 'inventory.img', abc),
    end(inventory),
  ],
  [
    'a list in another order',
    'DIGEST',
    'is not what came',
    ...whole(1, 'a.img', abc),
    ...whole(2, 'inventory.img', abc),
    end(inventory, entry('a.img', abc)),
  ],
  [
    'a list with another size',
    'DIGEST',
    'is not what came',
    open,
    data(1, 0, abc),
    close,
    end({ ...inventory, size: 4 }),
  ],
  [
    'a list with another digest',
    'DIGEST',
    'is not what came',
    open,
    data(1, 0, abc),
    close,
    end({ ...inventory, digest: 1n }),
  ],
  [
    'a list whose own digest is wrong',
    'DIGEST',
    'list of images is damaged',
    open,
    data(1, 0, abc),
    close,
    { ...end(inventory), digest: 1n } as Frame,
  ],
  [
    'another list under the digest of the right one',
    'DIGEST',
    'is not what came',
    open,
    data(1, 0, abc),
    close,
    { ...end({ ...inventory, size: 4 }), digest: (end(inventory) as { digest: bigint }).digest } as Frame,
  ],
  ['more than 64 open images', 'LIMIT', 'more than 64 images open', ...many],
  ['a name that leaves the directory', 'NAME', '"../x"', { ...open, name: '../x' as ImageName }],
  [
    'an image above the largest',
    'LIMIT',
    'above the limit',
    open,
    encodeFrame({ type: 'data', channel: 1, offset: 2 ** 48 + 1, length: 1 }),
  ],
  ['a second snapshot', 'FORMAT', 'a snapshot frame', { type: 'snapshot', id }],
  ['a hello', 'FORMAT', 'a hello frame', { type: 'hello' }],
  ['a get', 'FORMAT', 'a get frame', { type: 'get', id: undefined, timeoutMs: 1 }],
  ['an ack', 'FORMAT', 'a ack frame', { type: 'ack', channel: 1, offset: 0 }],
  ['a seal', 'FORMAT', 'a sealed frame', { type: 'sealed', digest: 1n }],
  ['a refusal', 'FORMAT', 'a refused frame', { type: 'refused', code: 'MEMORY', reason: 'full' }],
  [
    'a source that gave up',
    'ABORTED',
    'gave up: stopped',
    open,
    { type: 'failed', code: 'ABORTED', reason: 'stopped' },
  ],
]

for (const [what, code, message, ...parts] of wrongs) {
  test(`${what} is ${code}`, async () => {
    const good = whole(1, 'inventory.img', abc)
    await within(receiveBytes(stream({ type: 'snapshot', id }, ...good, end(inventory))))
    // The end that would follow is there: a receiver that misses the fault would be content, or find another one.
    const receiving = receiveBytes(stream({ type: 'snapshot', id }, ...parts, end(inventory)))
    assert.match((await rejectsFault(code, receiving, what)).message, message)
  })
}

test('64 open images are not too many', async () => {
  const opens = many.slice(0, 63)
  const ends = opens.map((_, at): Frame => ({ type: 'imageEnd', channel: at + 1, size: 0, digest: empty.digest }))
  const entries = opens.map((_, at) => ({ ...empty, name: imageName(`i${at}`) }))
  const last = whole(64, 'inventory.img', abc)
  const snapshot = await within(
    receiveBytes(stream({ type: 'snapshot', id }, ...opens, ...last, ...ends, end(...entries, inventory))),
  )
  assert.is(snapshot.images.length, 64)
})
const empty = entry('empty.img', Buffer.alloc(0))

test('an image is acknowledged when it is verified, in the order of the ends', async () => {
  const acks: [number, number][] = []
  const frames = stream(open, { type: 'image', channel: 2, name: other }, data(2, 0, abc), data(1, 0, abc), close, {
    type: 'imageEnd',
    channel: 2,
    size: 3,
    digest: 0n,
  })
  const sink = new MemorySnapshot(pool)
  const receiving = receiveSnapshot(frameReader(inletOf(frames)), sink, {
    onAck: async (channel, size) => void acks.push([channel, size]),
  })
  await rejectsFault('DIGEST', receiving)
  assert.equal(acks, [[1, 3]])
  assert.equal([...sink.images.keys()], ['inventory.img'], 'the damaged one is not among the images')
  sink.drop()
})

test('a sink that is full is MEMORY', async () => {
  const sink = new MemorySnapshot(new Pool(4 * MIB))
  const { bytes } = await sentBytes(sourceOf([image('pages-1.img', 5 * MIB), image('inventory.img', 9)]))
  await rejectsFault('MEMORY', receiveBytes(bytes, sink))
})

// What ends a sender before its time. In every case: the receiver never seals, and no pipe stays open.

/** Sends `source`, which fails; the receiver must fail too. Returns both reasons. */
async function failing(source: ImageSource, options?: SendOptions): Promise<{ sender: unknown; receiver: unknown }> {
  const before = openFds()
  const { bytes, error } = await sentBytes(source, options)
  assert.ok(error !== undefined, 'the sender should fail')
  const receiver = await reasonOf(receiveBytes(bytes), 'the receiver')
  await turns()
  assert.is(openFds(), before, 'a descriptor is left')
  return { sender: error, receiver }
}

test('a source that fails is told to the receiver, and its pipes are closed', async () => {
  const reason = new Fault('CRIU', 'criu dump failed')
  const source = sourceOf([image('a.img', 5 * MIB, 'pipe'), image('inventory.img', 9)], reason)
  const { sender, receiver } = await failing(source)
  assert.is(sender, reason)
  assert.is(source.destroyed, reason)
  assert.is((receiver as Fault).code, 'FAILED_DUMP')
  assert.match((receiver as Fault).message, 'criu dump failed')
  await within(source.written)
})

test('pieces that fail end everything', async () => {
  const reason = new Fault('IO', 'EIO')
  async function* pieces(): AsyncGenerator<Uint8Array> {
    yield bytesOf('x', 100)
    throw reason
  }
  const images = [{ name: imageName('a.img'), body: { kind: 'pieces' as const, pieces: pieces() } }]
  const { sender, receiver } = await failing({ images: Readable.from(images), destroy() {} })
  assert.is(sender, reason)
  assert.is((receiver as Fault).code, 'FAILED_DUMP')
})

test('a bug in a source is thrown as it is, and the receiver misses the end', async () => {
  const bug = new TypeError('a bug')
  const { sender, receiver } = await failing(sourceOf([image('inventory.img', 9)], bug as Error))
  assert.is(sender, bug)
  assert.is((receiver as Fault).code, 'TRUNCATED')
})

test('the same image twice is CRIU_PROTOCOL', async () => {
  const twice = image('inventory.img', 9, 'pipe')
  const { sender, receiver } = await failing(sourceOf([twice, twice]))
  assert.is((sender as Fault).code, 'CRIU_PROTOCOL')
  assert.is((receiver as Fault).code, 'FAILED_DUMP')
})

test('the end is sent only when it is confirmed', async () => {
  const reason = new Fault('CRIU', 'criu exited 1')
  const { sender, receiver } = await failing(sourceOf(plain), {
    confirm: async () => {
      throw reason
    },
  })
  assert.is(sender, reason)
  assert.match((receiver as Fault).message, 'criu exited 1')
  let confirmed = false
  const { bytes, error } = await sentBytes(sourceOf(plain), {
    confirm: async () => {
      await turns(5)
      confirmed = true
    },
  })
  assert.is(error, undefined)
  assert.ok(confirmed)
  assert.is((await framesOf(bytes)).at(-1)?.type, 'snapshotEnd')
})

/** An image whose pipe says one byte and then nothing, for as long as the test holds `into`. */
function silent(): { source: ImageSource; into: Fd } {
  const [out, into] = makePipe()
  libc.write(into, Buffer.from('x'), 1)
  const images = [{ name: imageName('inventory.img'), body: { kind: 'pipe' as const, fd: out } }]
  return { source: { images: Readable.from(images), destroy() {} }, into }
}

test('a signal ends a sender that waits for a pipe', async () => {
  const { source, into } = silent()
  const stop = new AbortController()
  const reason = new Fault('ABORTED', 'stopped by SIGTERM')
  const sending = sentBytes(source, { signal: stop.signal })
  await turns()
  stop.abort(reason)
  const { bytes, error } = await sending
  assert.is(error, reason)
  await rejectsFault('ABORTED', receiveBytes(bytes))
  assert.is(libc.write(into, Buffer.from('x'), 1), -libc.EPIPE, 'the pipe is closed')
  closeFd(into)
})

test('a signal ends a sender at any moment', async () => {
  for (let ticks = 0; ticks < 100; ticks++) {
    const { source, into } = silent()
    const { from, to } = pipeLinks()
    const stop = new AbortController()
    const sending = sendSnapshot(frameWriter(from.outlet), id, source, { signal: stop.signal })
    for (let tick = 0; tick < ticks; tick++) await null
    stop.abort(new Fault('ABORTED', 'stopped'))
    await rejectsFault('ABORTED', sending, `after ${ticks} ticks`)
    closeFd(into)
    from.destroy()
    to.destroy()
  }
})

test('a signal that came before ends a sender before it begins', async () => {
  const reason = new Fault('ABORTED', 'stopped by SIGTERM')
  const { sender, receiver } = await failing(sourceOf(plain), { signal: AbortSignal.abort(reason) })
  assert.is(sender, reason)
  assert.instance(receiver, Fault)
})

test('a link that is cut ends a sender, wherever it is', async () => {
  const before = openFds()
  for (const bytes of [0, 24, 54, 100, 70_000, 3 * MIB]) {
    const { from, to } = pipeLinks()
    const source = sourceOf([
      image('a.img', 5 * MIB, 'pipe'),
      image('b.img', 5 * MIB),
      image('inventory.img', 9, 'pipe'),
    ])
    const sending = sendSnapshot(frameWriter(from.outlet), id, source)
    sending.catch(() => {})
    await within(to.inlet.fill(Buffer.alloc(bytes)))
    to.destroy()
    await rejectsFault('LINK', sending, `after ${bytes} bytes`)
    assert.is((source.destroyed as Fault | undefined)?.code, 'LINK')
    await within(source.written)
    from.destroy()
  }
  await turns()
  assert.is(openFds(), before)
})

/** A link that always has more: `frames`, and what belongs to them. */
function endless(bytes: Buffer): Pick<Link['inlet'], 'fill'> {
  let at = 0
  return {
    async fill(into) {
      if (at + into.length > bytes.length) return false
      into.set(bytes.subarray(at, at + into.length))
      at += into.length
      return true
    },
  }
}

for (const [what, count, length] of [
  ['large', 32, MOST_DATA],
  ['tiny', 20_000, 1],
] as const) {
  test(`others get their turn while ${what} frames come as fast as they are read`, async () => {
    const frames: Uint8Array[] = [encodeFrame({ type: 'image', channel: 1, name: imageName('pages-1.img') })]
    const body = Buffer.alloc(length)
    for (let n = 0; n < count; n++)
      frames.push(encodeFrame({ type: 'data', channel: 1, offset: n * length, length }), body)
    let others = 0
    let over = false
    const look = (): void => {
      others++
      if (!over) setImmediate(look)
    }
    setImmediate(look)
    const sink = new MemorySnapshot(new Pool(2 ** 26))
    const reader = frameReader(endless(Buffer.concat(frames)), { started: true })
    await rejectsFault('TRUNCATED', receiveSnapshot(reader, sink))
    over = true
    sink.drop()
    assert.ok(others >= 4, `${others} turns`)
  })
}

test('a receiver waits for no more than its link: closing releases it', async () => {
  const { from, to } = pipeLinks()
  const sink = new MemorySnapshot(pool)
  const receiving = receive(to.inlet, sink)
  await from.outlet.send(small.subarray(0, 150))
  await turns()
  const reason = new Fault('ABORTED', 'stopped')
  to.destroy(reason)
  assert.is(await reasonOf(receiving), reason)
  from.destroy()
  sink.drop()
})

test('a hand-over is offered once, before the first image, and only to who can answer', async () => {
  const offer: Frame = { type: 'handOver', until: 'sealed' }
  const opened: Frame = { type: 'image', channel: 1, name: imageName('core-1.img') }
  const take = async (...frames: Frame[]): Promise<string[]> => {
    const heard: string[] = []
    const reader = frameReader(inletOf(stream(...frames)))
    await receiveSnapshot(reader, new MemorySnapshot(pool), { onHandOver: (until) => heard.push(until) }).catch(
      (error: Fault) => heard.push(error.code),
    )
    return heard
  }
  assert.equal(await take(offer), ['sealed', 'TRUNCATED'])
  assert.equal(await take(offer, offer), ['sealed', 'FORMAT'])
  assert.equal(await take(opened, offer), ['FORMAT'])
  assert.equal(await take(offer, { type: 'reserve', offset: 1 }), ['sealed', 'TRUNCATED'])
  assert.equal(await take({ type: 'reserve', offset: 1 }, offer), ['FORMAT'])
  await rejectsFault('FORMAT', receiveBytes(stream({ type: 'snapshot', id }, offer)))
})

const token = Buffer.alloc(16, 7)

test('a layer is said once, before the first image, and only to who keeps chains', async () => {
  const round: Frame = { type: 'layer', under: 2, last: false, token }
  const last: Frame = { ...round, last: true }
  const offer: Frame = { type: 'handOver', until: 'sealed' }
  const opened: Frame = { type: 'image', channel: 1, name: imageName('core-1.img') }
  const take = async (...frames: Frame[]): Promise<string[]> => {
    const heard: string[] = []
    await receiveSnapshot(frameReader(inletOf(stream(...frames))), new MemorySnapshot(pool), {
      onHandOver: () => heard.push('offer'),
      onLayer: (layer) => heard.push(`${layer.under} ${layer.last}`),
      onReserved: async () => void heard.push('reserved'),
    }).catch((error: Fault) => heard.push(error.code))
    return heard
  }
  assert.equal(await take(round), ['2 false', 'TRUNCATED'])
  assert.equal(await take(offer, last), ['offer', '2 true', 'TRUNCATED'])
  assert.equal(await take(offer, round), ['offer', 'FORMAT'], 'nobody waits for a verdict on a round')
  assert.equal(await take(last, offer), ['2 true', 'FORMAT'])
  assert.equal(await take(last, last), ['2 true', 'FORMAT'])
  assert.equal(await take(opened, last), ['FORMAT'])
  assert.equal(await take({ type: 'unchecked' }, last), ['FORMAT'])
  assert.equal(await take({ type: 'reserve', offset: 1 }, last), ['FORMAT'])
  assert.equal((await take(last, { type: 'unchecked' }, { type: 'reserve', offset: 1 })).slice(0, 1), ['2 true'])
  await rejectsFault('FORMAT', receiveBytes(stream({ type: 'snapshot', id }, round)))
})

test('a round ends without an inventory, at both ends; the last does not', async () => {
  const images = [image('pagemap-1.img', 50), image('pages-1.img', 4096)]
  for (const [last, code] of [
    [false, undefined],
    [true, 'FAILED_DUMP'],
  ] as const) {
    for (const greeted of [false, true]) {
      const { from, to } = pipeLinks()
      const writer = frameWriter(from.outlet)
      if (greeted) void writer.send({ type: 'snapshot', id })
      const layer = { under: 0, last, token }
      const sending = sendSnapshot(writer, id, sourceOf(images), { layer, greeted })
      sending.catch(() => {})
      const heard: unknown[] = []
      const reader = frameReader(to.inlet)
      await reader.expect(anyFrame)
      const sink = new MemorySnapshot(pool)
      const receiving = receiveSnapshot(reader, sink, {
        onLayer: ({ under, last, token }) => heard.push({ under, last, token }),
      })
      if (code !== undefined) {
        receiving.catch(() => {})
        await rejectsFault(code, sending)
        await rejectsFault(code, receiving)
      } else assert.equal(await receiving, await sending)
      assert.equal(heard, [layer])
      sink.drop()
      from.destroy()
    }
  }
  const entry = summarize([], true)
  const end: Frame = { type: 'snapshotEnd', ...entry }
  for (const last of [true, false]) {
    const reader = frameReader(inletOf(stream({ type: 'layer', under: 0, last, token }, end)))
    const receiving = receiveSnapshot(reader, new MemorySnapshot(pool), { onLayer: () => {} })
    if (last) await rejectsFault('FAILED_DUMP', receiving)
    else assert.is((await receiving).images.length, 0)
  }
})

test('what a receiver says against a layer, or against making memory ready, ends it', async () => {
  const refusal = new Fault('MISSING', 'no chain')
  const frames = stream({ type: 'layer', under: 1, last: true, token }, { type: 'reserve', offset: 1 })
  const sink = { open: () => assert.unreachable(), reserve: () => assert.unreachable() } as never
  const onLayer = (): never => {
    throw refusal
  }
  assert.is(await reasonOf(receiveSnapshot(frameReader(inletOf(frames)), sink, { onLayer })), refusal)
  const full = {
    open: () => assert.unreachable(),
    reserve: () => {
      throw refusal
    },
  } as never
  assert.is(await reasonOf(receiveSnapshot(frameReader(inletOf(frames)), full, { onLayer: () => {} })), refusal)
})

test('connections join before a snapshot, not inside of one', async () => {
  const join: Frame = { type: 'join', token: Buffer.alloc(16), index: 0, count: 2 }
  for (const frame of [join, { type: 'joined' } as const]) {
    await rejectsFault('FORMAT', receiveBytes(stream({ type: 'snapshot', id }, frame)), frame.type)
  }
})

test('unchecked: said once, before the first image; sizes count, and what is in the bytes does not', async () => {
  const bytes = stream(
    { type: 'snapshot', id },
    { type: 'unchecked' },
    { type: 'image', channel: 1, name: INVENTORY },
    { type: 'data', channel: 1, offset: 0, length: 3 },
  )
  const entry = { name: INVENTORY, size: 3, digest: 0n }
  const { digest: list } = summarize([entry])
  const end = (size: number): Buffer =>
    Buffer.concat([
      encodeFrame({ type: 'imageEnd', channel: 1, size, digest: 0n }),
      encodeFrame({ type: 'snapshotEnd', images: [{ ...entry, size }], digest: list }),
    ])
  for (const text of ['abc', 'abd']) {
    const received = await receiveBytes(Buffer.concat([bytes, Buffer.from(text), end(3)]))
    assert.equal(received.images, [entry])
  }
  await rejectsFault('DIGEST', receiveBytes(Buffer.concat([bytes, Buffer.from('abc'), end(4)])))
  await rejectsFault(
    'FORMAT',
    receiveBytes(stream({ type: 'snapshot', id }, { type: 'unchecked' }, { type: 'unchecked' })),
  )
  const late: Frame[] = [{ type: 'image', channel: 1, name: INVENTORY }, { type: 'unchecked' }]
  await rejectsFault('FORMAT', receiveBytes(stream({ type: 'snapshot', id }, ...late)))
})

test.run()
