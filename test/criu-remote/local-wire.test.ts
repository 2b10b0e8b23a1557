/** Images at both local ends of criu --remote: sizes at which the originals fail, and readers of every age. */
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { RemoteImages } from '../../lib/criu-remote/images.ts'
import { giveImage, IDS, idsOf, newReader, receiveImage } from '../../lib/criu-remote/local-wire.ts'
import { encodeIds } from '../../lib/criu-remote/messages.ts'
import { imageName } from '../../lib/format/names.ts'
import { duplicate, makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { sendFd, socketPair } from '../../lib/kernel/unix.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { type StoredImage, writeInto } from '../../lib/store/stored-image.ts'
import { PipeReader } from '../../lib/stream/pipe-reader.ts'
import { rejectsFault, waits, within } from '../expect.ts'
import { strangeFds } from '../kernel/fds.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { pattern } from '../support/talk.ts'

const test = suite('criu-remote/local-wire')
const LARGE = 2 ** 31 + 4096 * 3

function imageOf(bytes: Buffer): StoredImage {
  const snapshot = new MemorySnapshot(new Pool(16 * 2 ** 20))
  const name = imageName('a.img')
  const writer = snapshot.open(name)
  writeInto(writer, bytes)
  writer.end({ name, size: bytes.length, digest: 0n })
  return snapshot.images.get(name) as StoredImage
}

test('an image of more than 2 GiB is received to its end (the original of 3.3 counts in an int)', async () => {
  const images = new RemoteImages()
  const [criu, ours] = socketPair()
  images.take(imageName('pages-1.img'), false, ours)
  images.end()
  const [out, into] = makePipe()
  await sendFd(criu, out)
  closeFd(criu)
  const block = Buffer.alloc(2 ** 20)
  const writing = (async () => {
    for (let left = LARGE; left > 0; left -= block.length) await writeAll(into, block.subarray(0, left))
    closeFd(into)
  })()
  const room = Buffer.alloc(2 ** 20)
  let bytes = 0
  for await (const { body } of images.images) {
    if (body.kind !== 'pipe') throw new Error('it is kept')
    const reader = new PipeReader(body.fd, body.begun)
    while (await reader.ready()) bytes += reader.take(room)
  }
  await writing
  assert.is(bytes, LARGE)
})

test('an image of more than 2 GiB is given to a reader to its end', async () => {
  const [piece] = [...imageOf(pattern(2 ** 20)).pieces]
  if (piece === undefined) throw new Error('no piece')
  const bytes = piece.window.length
  const count = Math.ceil(LARGE / bytes)
  const pieces = {
    *[Symbol.iterator]() {
      for (let at = 0; at < count; at++) yield piece
    },
  }
  const [criu, ours] = socketPair()
  const reader = newReader()
  const giving = giveImage(ours, { name: imageName('pages-1.img'), size: count * bytes, digest: 0n, pieces }, reader)
  const [out, into] = makePipe()
  await sendFd(criu, into)
  closeFd(criu)
  const room = Buffer.alloc(2 ** 20)
  let taken = 0
  for (let got = await readSome(out, room); got > 0; got = await readSome(out, room)) taken += got
  closeFd(out)
  await giving
  assert.equal([taken, reader.bytes], [count * bytes, count * bytes])
})

for (const size of [0, 5000, 3_000_000]) {
  test(`a reader that hands over its pipe late gets all ${size} bytes there`, async () => {
    const image = imageOf(pattern(size))
    const [criu, ours] = socketPair()
    const reader = newReader()
    const giving = giveImage(ours, image, reader)
    await setTimeout(400)
    assert.is(reader.form, 'socket', 'it was taken for an old one')
    const [out, into] = makePipe()
    await sendFd(criu, into)
    closeFd(criu)
    assert.ok((await within(readToEnd(out))).equals(pattern(size)))
    closeFd(out)
    await within(giving)
    assert.is(reader.form, 'pipe')
  })
}

test('a reader that leaves half way is no error, with a pipe and with a socket', async () => {
  for (const form of ['pipe', 'socket'] as const) {
    const [criu, ours] = socketPair()
    const giving = giveImage(ours, imageOf(pattern(3_000_000)), { ...newReader(), form })
    if (form === 'pipe') {
      const [out, into] = makePipe()
      await sendFd(criu, into)
      await readSome(out, Buffer.alloc(10))
      closeFd(out)
    } else await readSome(criu, Buffer.alloc(10))
    closeFd(criu)
    await within(giving)
  }
})

test('a client must hand over the right end of a pipe', async () => {
  const image = imageOf(pattern(100_000))
  const [out, into] = makePipe()
  const others = strangeFds()
  for (const [what, fd] of Object.entries({ 'a write end': into, ...others.fds })) {
    const [criu, ours] = socketPair()
    const receiving = rejectsFault('CRIU_PROTOCOL', receiveImage(ours), what)
    await sendFd(criu, duplicate(fd))
    assert.match((await receiving).message, 'not the read end of a pipe')
    for (const socket of [criu, ours]) closeFd(socket)
  }
  for (const [what, fd] of Object.entries({ 'a read end': out, ...others.fds })) {
    const [criu, ours] = socketPair()
    const giving = rejectsFault('CRIU_PROTOCOL', giveImage(ours, image, newReader()), what)
    await sendFd(criu, duplicate(fd))
    assert.match((await giving).message, 'not the write end of a pipe')
    closeFd(criu)
  }
  others.close()
  for (const end of [out, into]) closeFd(end)
  assert.ok(Buffer.concat([...image.pieces].map(({ window }) => window)).equals(pattern(100_000)))
})

test('the end of a dump waits for an image whose pipe has not come yet', async () => {
  const images = new RemoteImages()
  const [criu, ours] = socketPair()
  images.take(imageName('a.img'), false, ours)
  images.end()
  const iterator = images.images[Symbol.asyncIterator]()
  const next = iterator.next()
  assert.ok(await waits(next))
  await writeAll(criu, pattern(10), { socket: true })
  closeFd(criu)
  assert.is((await within(next)).value?.name, 'a.img')
})

test('snapshot ids are read from an image that any sender may have made', () => {
  const name = IDS
  const image = (bytes: Buffer): ReadonlyMap<typeof name, StoredImage> => new Map([[name, { ...imageOf(bytes), name }]])
  assert.equal(idsOf(image(encodeIds(['/tmp/1', 'x'.repeat(4095)]))), ['/tmp/1', 'x'.repeat(4095)])
  for (const bytes of [Buffer.alloc(0), pattern(100), encodeIds(['/tmp/1']).subarray(0, 5)])
    assert.equal(idsOf(image(bytes)), [])
  assert.equal(idsOf(new Map()), [])
})

test.run()
