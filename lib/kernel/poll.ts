/** Waits for several descriptors at once (ppoll(2)). It blocks this thread: for programs that do nothing else. */
import { POLLIN, ppoll } from './libc.ts'

/** Bytes of a `struct pollfd`: the descriptor, the events asked for, the events seen. */
const ENTRY_BYTES = 8

export class Poll {
  readonly #count: number
  readonly #entries: Buffer
  readonly #time = new BigInt64Array(2)

  constructor(fds: readonly number[]) {
    this.#count = fds.length
    this.#entries = Buffer.alloc(ENTRY_BYTES * fds.length)
    for (const [index, fd] of fds.entries()) {
      this.#entries.writeInt32LE(fd, ENTRY_BYTES * index)
      this.#entries.writeInt16LE(POLLIN, ENTRY_BYTES * index + 4)
    }
  }

  /** Waits until one of them can be read or has ended, or for `ms` milliseconds. */
  wait(ms: number): void {
    this.#time[0] = BigInt(Math.floor(ms / 1000))
    this.#time[1] = BigInt(Math.round((ms % 1000) * 1e6))
    ppoll(this.#entries, this.#count, this.#time, null)
  }

  /** Whether the last wait saw something at the descriptor with that index. */
  saw(index: number): boolean {
    return this.#entries.readInt16LE(ENTRY_BYTES * index + 6) !== 0
  }
}
