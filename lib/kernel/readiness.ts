/**
 * Waiting for a descriptor without a thread and without reading from it.
 *
 * Node has no public way to ask "is this readable?" and its own streams read at once, which loses SCM_RIGHTS.
 * libuv's uv_poll, which koffi exposes, does it. Refused: `koffi.async(epoll_wait)`, which holds one
 * of libuv's four threads and costs 24-70 us a wake-up.
 *
 * One wait per direction and descriptor. Close through `closeFd`, so that a waiter is released and no number is
 * reused under it.
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

/** Resolves when a read on `fd` would not wait (data, end of file or an error). Rejects when `fd` is closed here. */
export function readable(fd: Fd): Promise<void> {
  return wait(fd, 'readable')
}

/** Resolves when a write on `fd` would not wait (room, or nobody to read). Rejects when `fd` is closed here. */
export function writable(fd: Fd): Promise<void> {
  return wait(fd, 'writable')
}

/** `happened` resolves when all writers of the pipe `fd` are gone; `forget` ends the wait, and then it never settles. */
export function hungUp(fd: Fd): { happened: Promise<void>; forget: () => void } {
  const happened = wait(fd, 'disconnect')
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

function wait(fd: Fd, direction: Direction): Promise<void> {
  const watch = watches.get(fd) ?? { handle: undefined, started: false, waiters: new Map<Direction, Waiter>() }
  watches.set(fd, watch)
  return new Promise((resolve, reject) => {
    if (watch.waiters.has(direction)) throw new Error(`two waiters for fd ${fd} ${direction}`)
    watch.waiters.set(direction, { resolve, reject })
    restart(fd, watch)
  })
}

/** Watches for what is waited for, and for nothing else. */
function restart(fd: Fd, watch: Watch): void {
  if (watch.waiters.size === 0) return void pause(watch)
  const has = (direction: Direction): boolean => watch.waiters.has(direction)
  const events = { readable: has('readable'), writable: has('writable'), disconnect: has('disconnect') }
  const wake = (_status: number, happened: PollEvents): void => {
    pause(watch)
    // koffi calls this outside of a callback scope: promises settled here would sleep until the next event. The
    // check phase that follows in the same turn of the loop is a proper scope.
    setImmediate(release, fd, watch, happened)
  }
  if (watch.handle === undefined) watch.handle = pollHandle(fd, events, wake)
  else watch.handle.start(events, wake)
  watch.started = true
}

function pause(watch: Watch): void {
  if (watch.started) watch.handle?.stop()
  watch.started = false
}

/** Readers and writers are woken together, and find EAGAIN if it was not their turn; a hang-up must have happened. */
function release(fd: Fd, watch: Watch, happened: PollEvents): void {
  if (watches.get(fd) !== watch) return
  for (const [direction, waiter] of [...watch.waiters]) {
    if (direction === 'disconnect' && !happened.disconnect) continue
    watch.waiters.delete(direction)
    waiter.resolve()
  }
  restart(fd, watch)
}
