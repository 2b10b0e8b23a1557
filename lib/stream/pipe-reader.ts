/**
 * Reading an image out of CRIU's pipe: soon, and by copying.
 *
 * CRIU does not copy the pages of the frozen tasks, it puts references to them into the pipe (vmsplice), and when all
 * images are written it kills the tasks. What is still in a pipe by then changes: the kernel clears the thread id of
 * every dying thread in its memory (CLONE_CHILD_CLEARTID) and updates its rseq area. Measured with CRIU 4.3 on Linux
 * 6.18: of a node with 12 threads 19 words differ between a copy taken at once and the same pipe read after the dump,
 * of an OpenJDK with 22 threads 33; the restored threads see themselves as ended. So references are passed on by tee()
 * and splice() only of tasks that stay frozen until the other end has it all (passed.ts); here bytes are copied, and
 * whatever lies in the pipe when CRIU closes its end is read at once, even while the link is blocked. That is at most
 * one pipe's worth of memory for an image.
 */
import { enlargePipe, type Fd, isPipe, setNonBlocking } from '../kernel/fd.ts'
import { closeFd, hungUp, interrupt, readable } from '../kernel/readiness.ts'
import { readNow } from '../kernel/transfer.ts'

export interface PipeReader {
  /** The next bytes; none at the end. They are valid until the next call. */
  next(): Promise<Uint8Array>
  /** Resolves when there is something to be taken, or the end. Returns false at the end. */
  ready(): Promise<boolean>
  /** The pipe, if the next bytes are still in it. */
  readonly untouched: Fd | undefined
  /** Puts bytes that are there into `room`. Returns how many: none where there is nothing yet, or no more. */
  take(room: Uint8Array): number
  /** Awaits `sending`; if CRIU closes its end meanwhile, reads what it left. */
  whileSending<Result>(sending: Promise<Result>): Promise<Result>
  /** Rejects a `next` that waits. */
  interrupt(reason: Error): void
  /** Closes the pipe, which happens by itself at its end. */
  close(): void
}

/** Most images are smaller than this, and get a small buffer. */
const SMALL = 16 * 2 ** 10
/** What is left in a pipe is read in steps of this many bytes. */
const REST = 64 * 2 ** 10

/**
 * A reader of chunks of at most `most` bytes; the pipe, which it owns, is made as large as allowed, and non-blocking.
 * `begun`: bytes that were read of it already. It may be a socket instead.
 */
export function pipeReader(pipe: Fd, most: number, begun: Uint8Array = Buffer.alloc(0)): PipeReader {
  setNonBlocking(pipe)
  const real = isPipe(pipe)
  if (real) enlargePipe(pipe)
  let scratch = Buffer.allocUnsafeSlow(0)
  const left: Uint8Array[] = []
  for (let at = 0; at < begun.length; at += most) left.push(begun.subarray(at, at + most))
  let open = true
  /** Times in a row that nothing was there. */
  let inVain = 0

  function close(): void {
    if (open) closeFd(pipe)
    open = false
  }

  /** Reads once into `into`; undefined when there is nothing now. */
  function readOnce(into: Uint8Array): Uint8Array | undefined {
    const got = readNow(pipe, into)
    if (got === undefined) {
      inVain++
      return undefined
    }
    inVain = 0
    if (got === 0) close()
    return into.subarray(0, got)
  }

  /** Into buffers of its own: the link is still sending the last one. */
  function takeRest(): void {
    while (open) {
      const bytes = readOnce(Buffer.allocUnsafeSlow(REST))
      if (bytes === undefined) return
      if (bytes.length > 0) left.push(bytes.length < REST / 2 ? Buffer.from(bytes) : bytes)
    }
  }

  return {
    async next() {
      for (;;) {
        const waiting = left.shift()
        if (waiting !== undefined) return waiting
        if (!open) return scratch.subarray(0, 0)
        if (scratch.length === 0) scratch = Buffer.allocUnsafeSlow(SMALL)
        const bytes = readOnce(scratch)
        if (bytes === undefined) {
          await readable(pipe, inVain)
          continue
        }
        if (bytes.length === SMALL && most > SMALL) scratch = Buffer.allocUnsafeSlow(most)
        return bytes
      }
    },
    async ready() {
      if (left.length > 0 || !open) return left.length > 0
      await readable(pipe, inVain)
      return true
    },
    get untouched() {
      return open && real && left.length === 0 ? pipe : undefined
    },
    take(room) {
      const first = left[0]
      if (first === undefined) return open ? (readOnce(room)?.length ?? 0) : 0
      const part = first.subarray(0, room.length)
      room.set(part)
      if (part.length < first.length) left[0] = first.subarray(part.length)
      else left.shift()
      return part.length
    },
    async whileSending(sending) {
      if (!open) return sending
      const hangUp = hungUp(pipe)
      hangUp.happened.then(takeRest).catch(() => {})
      try {
        return await sending
      } finally {
        hangUp.forget()
      }
    },
    interrupt(reason) {
      if (open) interrupt(pipe, reason)
    },
    close,
  }
}
