/**
 * Waiting for a descriptor without a thread and without reading from it.
 *
 * Node has no public way to ask "is this readable?" and its own streams read at once, which loses SCM_RIGHTS and
 * defeats splice. libuv's uv_poll, which koffi exposes, does it. Refused: `koffi.async(epoll_wait)`, which holds one
 * of libuv's four threads and costs 24-70 us a wake-up, against about 5 us here.
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

interface Watch {
  handle: PollHandle | undefined
  readable: Waiter | undefined
  writable: Waiter | undefined
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

/** Rejects whoever waits on `fd`, which stays open: for the one who must still close it. */
export function interrupt(fd: Fd, reason: Error): void {
  const watch = watches.get(fd)
  if (watch === undefined) return
  watch.handle?.stop()
  const { readable, writable } = watch
  watch.readable = undefined
  watch.writable = undefined
  readable?.reject(reason)
  writable?.reject(reason)
}

/** Closes `fd`; whoever waits on it is rejected with `reason`. */
export function closeFd(fd: Fd, reason: Error = new Fault('ABORTED', 'closed')): void {
  const watch = watches.get(fd)
  if (watch !== undefined) {
    interrupt(fd, reason)
    watches.delete(fd)
    watch.handle?.close()
  }
  close(fd)
}

function wait(fd: Fd, direction: keyof PollEvents): Promise<void> {
  const watch = watches.get(fd) ?? { handle: undefined, readable: undefined, writable: undefined }
  watches.set(fd, watch)
  return new Promise((resolve, reject) => {
    if (watch[direction] !== undefined) throw new Error(`two waiters for fd ${fd} ${direction}`)
    watch[direction] = { resolve, reject }
    start(fd, watch)
  })
}

function start(fd: Fd, watch: Watch): void {
  const events = { readable: watch.readable !== undefined, writable: watch.writable !== undefined }
  const wake = (): void => {
    watch.handle?.stop()
    // koffi calls this outside of a callback scope: promises settled here would sleep until the next event. The
    // check phase that follows in the same turn of the loop is a proper scope.
    setImmediate(release, fd, watch)
  }
  if (watch.handle === undefined) watch.handle = pollHandle(fd, events, wake)
  else watch.handle.start(events, wake)
}

/** Both directions are woken: the one that was not meant finds EAGAIN and waits again. */
function release(fd: Fd, watch: Watch): void {
  if (watches.get(fd) !== watch) return
  const { readable, writable } = watch
  watch.readable = undefined
  watch.writable = undefined
  readable?.resolve()
  writable?.resolve()
}
