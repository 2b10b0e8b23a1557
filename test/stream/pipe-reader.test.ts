import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makePipe } from '../../lib/kernel/fd.ts'
import { read } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { PipeReader } from '../../lib/stream/pipe-reader.ts'
import { within } from '../expect.ts'
import { pattern } from '../support/talk.ts'

const test = suite('stream/pipe-reader')

const room = Buffer.alloc(2 ** 20)

/** What is there next; nothing at the end. */
async function next(reader: PipeReader): Promise<Uint8Array> {
  while (await within(reader.ready())) {
    const bytes = reader.take(room)
    if (bytes > 0) return room.subarray(0, bytes)
  }
  return room.subarray(0, 0)
}

async function readAll(reader: PipeReader): Promise<Buffer> {
  const chunks: Buffer[] = []
  for (;;) {
    const bytes = await next(reader)
    if (bytes.length === 0) return Buffer.concat(chunks)
    chunks.push(Buffer.from(bytes))
  }
}

for (const size of [0, 1, 16_383, 16_384, 16_385, 3_000_000]) {
  test(`${size} bytes come out as they went in, and the end stays the end`, async () => {
    const [out, into] = makePipe()
    const bytes = pattern(size)
    const writing = writeAll(into, bytes).then(() => closeFd(into))
    const reader = new PipeReader(out)
    assert.ok((await readAll(reader)).equals(bytes))
    assert.is((await next(reader)).length, 0)
    await writing
  })
}

test('bytes are put where the caller wants them, what was read apart first', async () => {
  const [out, into] = makePipe()
  const reader = new PipeReader(out)
  const room = Buffer.alloc(50_000)
  assert.is(reader.take(room), 0, 'nothing is there yet')
  await writeAll(into, pattern(10))
  assert.ok(await within(reader.ready()))
  assert.is(reader.take(room), 10)
  assert.ok(room.subarray(0, 10).equals(pattern(10)))
  const bytes = pattern(200_000, 2)
  const blocked = reader.whileSending(new Promise<void>((resolve) => setTimeout(resolve, 300)))
  await writeAll(into, bytes)
  closeFd(into)
  await within(blocked)
  const parts: Buffer[] = []
  while (await within(reader.ready())) parts.push(Buffer.from(room.subarray(0, reader.take(room))))
  assert.ok(Buffer.concat(parts).equals(bytes))
  assert.is(reader.take(room), 0)
  assert.not(await within(reader.ready()), 'the end stays the end')
})

test('what the writer leaves is read at once, even while the link is blocked', async () => {
  const [out, into] = makePipe()
  const reader = new PipeReader(out)
  await writeAll(into, pattern(1000, 1))
  const beingSent = await next(reader)
  let unblock: () => void = () => {}
  const sending = reader.whileSending(
    new Promise<void>((resolve) => {
      unblock = resolve
    }),
  )
  await writeAll(into, pattern(200_000, 2))
  closeFd(into)
  // The link stays blocked; the pipe is emptied all the same, and closed (EBADF).
  await new Promise((resolve) => setTimeout(resolve, 300))
  assert.is(read(out, Buffer.alloc(1), 1), -9)
  assert.ok(Buffer.from(beingSent).equals(pattern(1000, 1)), 'what is being sent stays as it was')
  unblock()
  await within(sending)
  assert.ok((await readAll(reader)).equals(pattern(200_000, 2)))
})

test('a writer that is still there is not read ahead of a blocked link', async () => {
  const [out, into] = makePipe()
  const reader = new PipeReader(out)
  await writeAll(into, pattern(10, 1))
  await next(reader)
  let unblock: () => void = () => {}
  const sending = reader.whileSending(
    new Promise<void>((resolve) => {
      unblock = resolve
    }),
  )
  await writeAll(into, pattern(5000, 2))
  await new Promise((resolve) => setTimeout(resolve, 50))
  const left = Buffer.alloc(10_000)
  assert.is(read(out, left, left.length), 5000)
  assert.ok(left.subarray(0, 5000).equals(pattern(5000, 2)))
  unblock()
  await within(sending)
  closeFd(into)
  reader.close()
})

test.run()
