/**
 * Reading an image out of CRIU's pipe: soon, and by copying.
 *
 * CRIU does not copy the pages of the frozen tasks: it puts references to them into the pipe (vmsplice), and when all
 * images are written it kills the tasks. What is still in a pipe by then changes: the kernel clears the thread id of
 * every dying thread in its memory (CLONE_CHILD_CLEARTID) and updates its rseq area. Measured with CRIU 4.3 on Linux
 * 6.18: of a node with 12 threads 19 words differ between a copy taken at once and the same pipe read after the dump,
 * of an OpenJDK with 22 threads 33; the restored threads see themselves as ended.
 *
 * So references are passed on by tee() and splice() only of tasks that stay frozen until the other end has it all
 * (splice-buffer.ts). Here bytes are copied, and whatever lies in the pipe when CRIU closes its end is read at once,
 * even while the link is blocked. That is at most one pipe's worth of memory for an image.
 */
import { enlargePipe, type Fd, isPipe, setNonBlocking } from '../kernel/fd.ts'
import { closeFd, hungUp, interrupt, readable } from '../kernel/readiness.ts'
import { readNow } from '../kernel/transfer.ts'

/** Most images are smaller than this, and get a small buffer. */
const SMALL_BYTES = 16 * 2 ** 10
/** What is left in a pipe is read in steps of this many bytes. */
const STEP_BYTES = 64 * 2 ** 10

/** Reads one image and owns its pipe, which may be a socket instead. */
export class PipeReader {
  readonly #fd: Fd
  readonly #isPipe: boolean
  /** Bytes that were read before a caller had room for them. */
  readonly #left: Uint8Array[]
  #scratch = Buffer.alloc(0)
  #open = true
  /** Reads in a row that found nothing. */
  #emptyReads = 0

  /** Makes the pipe as large as allowed, and non-blocking. `begun`: bytes that were read of the image already. */
  constructor(fd: Fd, begun: Uint8Array = Buffer.alloc(0)) {
    this.#fd = fd
    this.#left = begun.length > 0 ? [begun] : []
    setNonBlocking(fd)
    this.#isPipe = isPipe(fd)
    if (this.#isPipe) enlargePipe(fd)
  }

  /** Resolves when there is something to take, or at the end. Returns false at the end. */
  async ready(): Promise<boolean> {
    if (this.#left.length > 0 || !this.#open) return this.#left.length > 0
    await readable(this.#fd, this.#emptyReads)
    return true
  }

  /** The pipe, if the next bytes are still in it. */
  get untouched(): Fd | undefined {
    return this.#open && this.#isPipe && this.#left.length === 0 ? this.#fd : undefined
  }

  /** Puts bytes that are there into `room`. Returns how many: 0 where there is nothing yet, or no more. */
  take(room: Uint8Array): number {
    const first = this.#left[0]
    if (first === undefined) return this.#open ? (this.#read(room) ?? 0) : 0
    const part = first.subarray(0, room.length)
    room.set(part)
    if (part.length < first.length) this.#left[0] = first.subarray(part.length)
    else this.#left.shift()
    return part.length
  }

  /** Takes at most `most` bytes into a buffer that the next call overwrites; none where `take` would take none. */
  chunk(most: number): Uint8Array {
    if (this.#scratch.length === 0) this.#scratch = Buffer.allocUnsafeSlow(SMALL_BYTES)
    const bytes = this.#scratch.subarray(0, this.take(this.#scratch.subarray(0, most)))
    if (bytes.length === this.#scratch.length && most > bytes.length) this.#scratch = Buffer.allocUnsafeSlow(most)
    return bytes
  }

  /** Awaits `sending`; if CRIU closes its end meanwhile, reads what it left. */
  async whileSending<Result>(sending: Promise<Result>): Promise<Result> {
    if (!this.#open) return sending
    const hangUp = hungUp(this.#fd)
    hangUp.happened.then(() => this.#readRest()).catch(() => {})
    try {
      return await sending
    } finally {
      hangUp.forget()
    }
  }

  /** Rejects a `ready` that waits. */
  interrupt(reason: Error): void {
    if (this.#open) interrupt(this.#fd, reason)
  }

  /** Closes the pipe, which happens by itself at its end. */
  close(): void {
    if (this.#open) closeFd(this.#fd)
    this.#open = false
  }

  /** Reads once. Returns how many bytes, 0 at the end, undefined where nothing is there now. */
  #read(into: Uint8Array): number | undefined {
    const got = readNow(this.#fd, into)
    this.#emptyReads = got === undefined ? this.#emptyReads + 1 : 0
    if (got === 0) this.close()
    return got
  }

  /** Reads into buffers of its own: the link may still be sending what was taken last. */
  #readRest(): void {
    while (this.#open) {
      const buffer = Buffer.allocUnsafeSlow(STEP_BYTES)
      const got = this.#read(buffer)
      if (got === undefined) return
      const bytes = buffer.subarray(0, got)
      if (got > 0) this.#left.push(got < STEP_BYTES / 2 ? Buffer.from(bytes) : bytes)
    }
  }
}
