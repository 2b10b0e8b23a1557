import { closeSync, openSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asFd, duplicate, type Fd, makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { HUGE_PAGE, mapMemory } from '../../lib/kernel/mapped-memory.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readHeap, readSome, spliceAll, vmspliceAll, writeAll } from '../../lib/kernel/transfer.ts'
import { hasSpoken, receiveWithFds, sendFd, socketPair as unixPair } from '../../lib/kernel/unix.ts'
import { PipeReader } from '../../lib/stream/pipe-reader.ts'
import { reasonOf, rejectsFault, turns, within } from '../expect.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { socketPair } from './fds.ts'

const test = suite('kernel/transfer')

const PIPE = 65536
const large = Buffer.from(
  Array.from({ length: 5 * PIPE + 123 }, (_, at) => (at * 7 + (at >> 8) + (at >> 16) * 3) & 255),
)

function held(pipe: Fd): number {
  const value = new Int32Array(1)
  libc.ioctlInt(pipe, libc.FIONREAD, value)
  return value[0] ?? -1
}

/** What every way of writing has to do with a pipe that is too small for it. */
function writes(name: string, write: (into: Fd) => Promise<void>): void {
  test(`${name}: waits until the reader reads, and all bytes come in order`, async () => {
    const [out, into] = makePipe()
    let done = false
    const writing = write(into).then(() => {
      done = true
      closeFd(into)
    })
    await turns()
    assert.not(done, 'more than the pipe holds was written without a reader')
    assert.ok(held(out) > 0 && held(out) <= PIPE, `${held(out)} bytes are in the pipe`)
    const got = await within(readToEnd(out))
    await within(writing)
    assert.ok(got.equals(large))
    closeFd(out)
  })

  test(`${name}: LINK when the reader goes away, before and while waiting`, async () => {
    const [out, into] = makePipe()
    const writing = write(into)
    await turns()
    closeFd(out)
    await rejectsFault('LINK', writing)
    await rejectsFault('LINK', write(into))
    closeFd(into)
  })

  test(`${name}: closing releases the waiter with the reason`, async () => {
    const [out, into] = makePipe()
    const writing = write(into)
    await turns()
    const reason = new Error('enough')
    closeFd(into, reason)
    assert.is(await reasonOf(writing), reason)
    closeFd(out)
  })
}

writes('writeAll', (into) => writeAll(into, large))

const region = mapMemory(HUGE_PAGE)
region.window.set(large)
writes('vmspliceAll', (into) =>
  vmspliceAll([{ address: region.address, window: region.window.subarray(0, large.length) }], into),
)

const cuts = [0, 4096, 0, 5, 65_531, 1, 4096, 100_000, 0]
const pieces = cuts.map((bytes, index) => {
  const before = cuts.slice(0, index).reduce((sum, cut) => sum + cut, 0)
  const end = index === cuts.length - 1 ? large.length : before + bytes
  return { address: region.address + BigInt(before), window: region.window.subarray(before, end) }
})
writes('vmspliceAll of many pieces', (into) => vmspliceAll(pieces, into))

test('readSome gives what is there, waits when there is nothing, and 0 at the end', async () => {
  const [out, into] = makePipe()
  const buffer = Buffer.alloc(10)
  libc.write(into, Buffer.from('abc'), 3)
  assert.is(await within(readSome(out, buffer)), 3)
  const waiting = readSome(out, buffer)
  await turns()
  libc.write(into, Buffer.from('defg'), 4)
  assert.is(await within(waiting), 4)
  assert.is(buffer.toString('latin1', 0, 4), 'defg')
  closeFd(into)
  assert.is(await within(readSome(out, buffer)), 0)
  closeFd(out)
  await rejectsFault('IO', readSome(out, buffer))
})

test('readSome: closing releases the waiter with the reason', async () => {
  const [out, into] = makePipe()
  const reason = new Error('enough')
  const waiting = readSome(out, Buffer.alloc(1))
  closeFd(out, reason)
  assert.is(await reasonOf(waiting), reason)
  closeFd(into)
})

test('a directory cannot be read: IO', async () => {
  const fd = openSync('/', 'r')
  await rejectsFault('IO', readSome(asFd(fd), Buffer.alloc(1)))
  closeSync(fd)
})

test('a socket: all bytes come, more or not; a peer that left is LINK', async () => {
  const [near, far] = await socketPair()
  const sending = (async () => {
    await writeAll(near, large, { socket: true, more: true })
    await writeAll(near, large, { socket: true })
  })()
  const got = Buffer.alloc(2 * large.length)
  for (let filled = 0; filled < got.length; ) filled += await within(readSome(far, got.subarray(filled)))
  await within(sending)
  assert.ok(got.equals(Buffer.concat([large, large])))
  closeFd(far)
  await rejectsFault('LINK', writeAll(near, large, { socket: true }))
  closeFd(near)
})

test('a peer that leaves with bytes unread is LINK for the reader too', async () => {
  const [near, far] = await socketPair()
  await writeAll(near, Buffer.from('unread'), { socket: true })
  closeFd(far)
  await rejectsFault('LINK', readSome(near, Buffer.alloc(1)))
  closeFd(near)
})

test('nothing to write is written at once', async () => {
  const [out, into] = makePipe()
  await within(writeAll(into, Buffer.alloc(0)))
  await within(vmspliceAll([{ address: region.address, window: new Uint8Array(0) }], into))
  assert.is(held(out), 0)
  closeFd(out)
  closeFd(into)
})

/**
 * Does to a descriptor what keeps it from whoever waits for it: `bait` before the system is asked whether it is ready,
 * and `takeAway` after it has said so and before the one who waits is woken.
 */
function teasing(bait: () => void, takeAway: () => void): () => void {
  let over = false
  const [early, late] = [
    (): void => {
      if (over) return
      bait()
      setTimeout(early, 0)
    },
    (): void => {
      if (over) return
      takeAway()
      setImmediate(late)
    },
  ]
  takeAway()
  setTimeout(early, 0)
  setImmediate(late)
  return () => {
    over = true
  }
}

test('no loop goes round for ever where what is said to be there is taken by others first', async () => {
  const scratch = Buffer.alloc(65536)
  const byte = Buffer.from('x')
  const fds: Fd[] = []
  const opened = ([out, into]: [Fd, Fd]): [Fd, Fd] => {
    fds.push(out, into)
    return [out, into]
  }
  const drained = (fd: Fd): void => {
    while (libc.read(fd, scratch, scratch.length) > 0);
  }
  const filled = (fd: Fd): void => {
    while (libc.write(fd, scratch, 4096) > 0);
  }
  const reads = (ends: [Fd, Fd], work: (fd: Fd) => Promise<unknown>): [Promise<unknown>, () => void] => {
    const [out, into] = opened(ends)
    const stop = teasing(
      () => libc.write(into, byte, 1),
      () => drained(out),
    )
    return [work(out), stop]
  }
  const writes = (ends: [Fd, Fd], work: (fd: Fd) => Promise<unknown>): [Promise<unknown>, () => void] => {
    const [out, into] = opened(ends)
    const stop = teasing(
      () => drained(out),
      () => filled(into),
    )
    return [work(into), stop]
  }
  const lent = [{ address: region.address, window: region.window.subarray(0, large.length) }]
  const [full, feeder] = opened(makePipe())
  libc.write(feeder, byte, 1)
  const all: [Promise<unknown>, () => void][] = [
    reads(makePipe(), (fd) => readSome(fd, Buffer.alloc(10))),
    reads(unixPair(), (fd) => readHeap(fd, Buffer.alloc(10), Int32Array.of(1))),
    reads(unixPair(), (fd) => receiveWithFds(fd, Buffer.alloc(10))),
    reads(unixPair(), hasSpoken),
    reads(makePipe(), async (fd) => {
      const reader = new PipeReader(fd)
      while (reader.take(Buffer.alloc(10)) === 0) await reader.ready()
    }),
    writes(makePipe(), (fd) => writeAll(fd, large)),
    writes(unixPair(), (fd) => writeAll(fd, large, { socket: true })),
    writes(makePipe(), (fd) => vmspliceAll(lent, fd)),
    writes(unixPair(), (fd) => spliceAll(full, fd, 1)),
    writes(unixPair(), (fd) => sendFd(fd, duplicate(full))),
  ]
  try {
    for (const [work] of all) work.catch(() => {})
    for (const [index, [work]] of all.entries()) await rejectsFault('IO', work, `loop ${index}`)
  } finally {
    for (const [, stop] of all) stop()
    for (const fd of fds) closeFd(fd)
  }
})

test('what takes nothing without a reason is an error: the read end of a pipe that nobody fills', async () => {
  const [out, into] = makePipe()
  closeFd(into)
  await rejectsFault('IO', vmspliceAll([{ address: region.address, window: region.window.subarray(0, 4096) }], out))
  closeFd(out)
})

test.run()
