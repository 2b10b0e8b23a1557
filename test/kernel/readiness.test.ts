import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd, hungUp, interrupt, readable, writable } from '../../lib/kernel/readiness.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import { reasonOf, rejectsFault, turns, waits, within } from '../expect.ts'
import { openFds } from './fds.ts'

const test = suite('kernel/readiness')

const byte = Buffer.from('x')

function fillUp(fd: Fd): void {
  while (libc.write(fd, Buffer.alloc(4096), 4096) > 0);
}

test('a reader waits for a byte', async () => {
  const [out, into] = makePipe()
  const waiting = readable(out)
  assert.ok(await waits(waiting))
  libc.write(into, byte, 1)
  await within(waiting)
  assert.is(libc.read(out, Buffer.alloc(2), 2), 1, 'nothing was read by waiting')
  closeFd(out)
  closeFd(into)
})

test('the end of the file is readable', async () => {
  const [out, into] = makePipe()
  const waiting = readable(out)
  closeFd(into)
  await within(waiting)
  assert.is(libc.read(out, Buffer.alloc(1), 1), 0)
  closeFd(out)
})

test('a writer waits for room, and learns that nobody reads', async () => {
  const [out, into] = makePipe()
  fillUp(into)
  const waiting = writable(into)
  assert.ok(await waits(waiting))
  libc.read(out, Buffer.alloc(65536), 65536)
  await within(waiting)
  fillUp(into)
  const again = writable(into)
  closeFd(out)
  await within(again)
  assert.is(libc.write(into, byte, 1), -libc.EPIPE)
  closeFd(into)
})

test('a descriptor can be waited on many times', async () => {
  const [out, into] = makePipe()
  for (let round = 0; round < 100; round++) {
    const waiting = readable(out)
    libc.write(into, byte, 1)
    await within(waiting)
    assert.is(libc.read(out, Buffer.alloc(2), 2), 1)
  }
  closeFd(out)
  closeFd(into)
})

test('both directions of a socket are waited on at once', async () => {
  const [near, far] = socketPair()
  fillUp(near)
  const [reading, writing] = [readable(near), writable(near)]
  assert.ok(await waits(Promise.race([reading, writing])))
  libc.write(far, byte, 1)
  await within(reading)
  assert.is(libc.read(near, Buffer.alloc(1), 1), 1)
  while (libc.read(far, Buffer.alloc(65536), 65536) > 0);
  await within(writing)
  assert.is(libc.write(near, byte, 1), 1)
  closeFd(near)
  closeFd(far)
})

test('a second waiter in one direction is a bug, the first one waits on', async () => {
  const [out, into] = makePipe()
  const first = readable(out)
  const reason = await reasonOf(readable(out))
  assert.ok(reason instanceof Error && !(reason instanceof Fault))
  libc.write(into, byte, 1)
  await within(first)
  closeFd(out)
  closeFd(into)
})

test('closing releases whoever waits, with the reason', async () => {
  const before = openFds()
  const [out, into] = makePipe()
  fillUp(into)
  const [reason, reader, writer] = [new Error('enough'), readable(out), writable(into)]
  closeFd(into, reason)
  assert.is(await reasonOf(writer), reason)
  await within(reader)
  const second = readable(out)
  closeFd(out)
  await rejectsFault('ABORTED', second)
  assert.is(libc.read(out, Buffer.alloc(1), 1), -9, 'EBADF')
  await turns()
  assert.ok(openFds() <= before + 1, 'nothing but the poller of the event loop stays')
})

test('an interrupt rejects the waiter and leaves the descriptor usable', async () => {
  const [near, far] = socketPair()
  fillUp(near)
  const [reason, waiters] = [new Error('stop'), [readable(near), writable(near)]]
  interrupt(near, reason)
  for (const waiter of waiters) assert.is(await reasonOf(waiter), reason)
  interrupt(near, reason)
  const again = readable(near)
  libc.write(far, byte, 1)
  await within(again)
  assert.is(libc.read(near, Buffer.alloc(1), 1), 1)
  closeFd(near)
  closeFd(far)
  interrupt(near, reason)
})

test('a number that is used again has only its new waiter', async () => {
  const [out, into] = makePipe()
  const old = readable(out)
  libc.write(into, byte, 1)
  const reason = new Error('closed under the waiter')
  // The poller may have seen the byte already: its news must not reach the next owner of the number.
  await new Promise((resolve) => setImmediate(resolve))
  closeFd(out, reason)
  closeFd(into)
  await old.catch((error: unknown) => assert.is(error, reason))
  const [again, feeder] = makePipe()
  assert.is(again, out, 'the kernel gives the lowest free number')
  const waiting = readable(again)
  assert.ok(await waits(waiting))
  libc.write(feeder, byte, 1)
  await within(waiting)
  closeFd(again)
  closeFd(feeder)
})

test('who forgets a hang-up of a closed descriptor leaves alone the one that has its number now', async () => {
  const [out, into] = makePipe()
  const { forget, happened } = hungUp(out)
  happened.catch(() => {})
  closeFd(out)
  const [again, other] = makePipe()
  assert.is(again, out, 'the number is used again')
  const second = hungUp(again)
  forget()
  closeFd(other)
  await within(second.happened)
  for (const fd of [again, into]) closeFd(fd)
})

test('who waits to read is not woken by room to write, and the other way round', async () => {
  const [near, far] = socketPair()
  const reading = readable(near)
  for (let round = 0; round < 10; round++) await within(writable(near))
  assert.ok(await waits(reading))
  fillUp(near)
  const writing = writable(near)
  for (let round = 0; round < 10; round++) {
    libc.write(far, byte, 1)
    await within(round === 0 ? reading : readable(near))
    assert.is(libc.read(near, Buffer.alloc(2), 2), 1)
  }
  assert.ok(await waits(writing))
  const [wakes, last] = [Promise.all([writing, readable(near), hungUp(near).happened]), far]
  closeFd(last)
  await within(wakes)
  closeFd(near)
})

test('an error is news for everybody, also for who waits for a hang-up', async () => {
  const [out, into] = makePipe()
  fillUp(into)
  const [waiting, gone] = [writable(into), hungUp(into)]
  closeFd(out)
  await within(Promise.all([waiting, gone.happened]))
  closeFd(into)
  const [near, far] = socketPair()
  libc.write(near, byte, 1)
  const reset = hungUp(near)
  // With a byte unread that resets the connection.
  closeFd(far)
  await within(reset.happened)
  closeFd(near)
})

test('who was woken in vain a thousand times is told that it is no use, and before that waits', async () => {
  const [out, into] = makePipe()
  libc.write(into, byte, 1)
  for (const times of [0, 1, 999]) await within(readable(out, times))
  await rejectsFault('IO', readable(out, 1000))
  await rejectsFault('IO', writable(into, 1000))
  const reason = new Error('enough')
  const pausing = readable(out, 999)
  closeFd(out, reason)
  assert.is(await reasonOf(pausing), reason)
  const [again, feeder] = makePipe()
  assert.is(again, out, 'the number is used again')
  const waiting = readable(again)
  assert.ok(await waits(waiting))
  for (const fd of [feeder, into]) closeFd(fd)
  await within(waiting)
  closeFd(again)
})

test.run()
