/**
 * Waiting for a descriptor without a thread and without reading from it.
 *
 * Node has no public way to ask "is this readable?" and its own streams read at once, which loses SCM_RIGHTS.
 * libuv's uv_poll, which koffi exposes, does it. Refused: `koffi.async(epoll_wait)`, which holds one
 * of libuv's four threads and costs 24-70 us a wake-up.
 *
 * One wait per direction and descriptor. Close through `closeFd`, so that a waiter is released and no number is
 * reused under it.
 *
 * A caller that waits for one direction is woken by events of that direction alone, so that being woken and finding
 * nothing is odd: a caller counts how often that happened in a row and says it when it waits again. After a few times
 * the next wait takes a millisecond at least, and after a thousand it is an error. Without that end a descriptor of
 * which the kernel says what is not so would keep this thread busy for ever, deaf to everybody else.
 */
import { Fault } from '../fault.ts'
import type { Fd } from './fd.ts'
import { close, type PollEvents, type PollHandle, pollHandle } from './libc.ts'

interface Waiter {
  resolve: () => void
  reject: (reason: Error) => void
}

type Direction = keyof PollEvents

interface Watch {
  handle: PollHandle | undefined
  /** The handle watches: each stop costs a call, and none is needed twice. */
  started: boolean
  waiters: Map<Direction, Waiter>
}

const watches = new Map<Fd, Watch>()

/**
 * Wakes in a row that may be for nothing. Some are honest: whoever shares a pipe reads first, and where the system is
 * short of memory for TCP a socket is said to have room and takes nothing. With the pauses they last a second.
 */
const MOST_IN_VAIN = 1000
/** So many of them without a pause. */
const FEW_IN_VAIN = 10
const PAUSE_MS = 1

/**
 * Resolves when a read on `fd` would not wait (data, end of file or an error). `inVain`: how many times in a row there
 * was nothing to read then. Rejects when `fd` is closed here, and with `IO` when that was too often.
 */
export function readable(fd: Fd, inVain = 0): Promise<void> {
  return wait(fd, 'readable', inVain)
}

/** The same for a write: room, or nobody to read. */
export function writable(fd: Fd, inVain = 0): Promise<void> {
  return wait(fd, 'writable', inVain)
}

/**
 * `happened` resolves when all writers of the pipe `fd` are gone; `forget` ends the wait, and then it never settles.
 */
export function hungUp(fd: Fd): { happened: Promise<void>; forget: () => void } {
  const happened = wait(fd, 'disconnect', 0)
  const watch = watches.get(fd)
  return {
    happened,
    forget() {
      // The number may have been closed meanwhile, and be another pipe's now.
      if (watch === undefined || watches.get(fd) !== watch) return
      if (watch.waiters.delete('disconnect')) restart(fd, watch)
    },
  }
}

/** Rejects whoever waits on `fd`, which stays open: for the one who must still close it. */
export function interrupt(fd: Fd, reason?: Error): void {
  const watch = watches.get(fd)
  if (watch === undefined) return
  pause(watch)
  const waiters = [...watch.waiters.values()]
  watch.waiters.clear()
  // Made only where somebody hears it: an error with its stack costs more than the close.
  for (const waiter of waiters) waiter.reject(reason ?? new Fault('ABORTED', 'closed'))
}

/** Closes `fd`; whoever waits on it is rejected with `reason`. */
export function closeFd(fd: Fd, reason?: Error): void {
  const watch = watches.get(fd)
  if (watch !== undefined) {
    interrupt(fd, reason)
    watches.delete(fd)
    watch.handle?.close()
  }
  close(fd)
}

function wait(fd: Fd, direction: Direction, inVain: number): Promise<void> {
  if (inVain >= MOST_IN_VAIN) {
    const what = `a descriptor is said to be ${direction} ${MOST_IN_VAIN} times in a row, and is not`
    return Promise.reject(new Fault('IO', what))
  }
  const watch = watches.get(fd) ?? { handle: undefined, started: false, waiters: new Map<Direction, Waiter>() }
  watches.set(fd, watch)
  return new Promise((resolve, reject) => {
    if (watch.waiters.has(direction)) throw new Error(`two waiters for fd ${fd} ${direction}`)
    watch.waiters.set(direction, { resolve, reject })
    if (inVain < FEW_IN_VAIN) restart(fd, watch)
    else setTimeout(restart, PAUSE_MS, fd, watch)
  })
}

/** Watches for what is waited for, and for nothing else: of a descriptor that is closed meanwhile, for nothing. */
function restart(fd: Fd, watch: Watch): void {
  if (watch.waiters.size === 0) return void pause(watch)
  const has = (direction: Direction): boolean => watch.waiters.has(direction)
  const events = { readable: has('readable'), writable: has('writable'), disconnect: has('disconnect') }
  const wake = (status: number, happened: PollEvents): void => {
    pause(watch)
    // koffi calls this outside of a callback scope: promises settled here would sleep until the next event. The
    // check phase that follows in the same turn of the loop is a proper scope.
    setImmediate(release, fd, watch, status < 0 ? everything : happened)
  }
  if (watch.handle === undefined) watch.handle = pollHandle(fd, events, wake)
  else watch.handle.start(events, wake)
  watch.started = true
}

function pause(watch: Watch): void {
  if (watch.started) watch.handle?.stop()
  watch.started = false
}

/**
 * What libuv tells with a status below 0: POLLERR, which is a pipe without a reader or a socket with an error. Whoever
 * waits finds out which. A hang-up (POLLHUP) it tells as everything that was waited for, and needs nothing here.
 */
const everything: PollEvents = { readable: true, writable: true, disconnect: true }

function release(fd: Fd, watch: Watch, happened: PollEvents): void {
  if (watches.get(fd) !== watch) return
  for (const [direction, waiter] of [...watch.waiters]) {
    if (!happened[direction]) continue
    watch.waiters.delete(direction)
    waiter.resolve()
  }
  restart(fd, watch)
}
