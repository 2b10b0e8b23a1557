/**
 * Bytes of frozen tasks that go from CRIU's pipe to a socket, and are kept until the other end has them, without ever
 * being read here: references to the tasks' pages, held in pairs of pipes. One pipe of a pair holds what is still to
 * be sent; the other, filled with tee(), holds what is sent again when the link breaks. The pages are the tasks'
 * memory, so the tasks must not run meanwhile (pipe-reader.ts says what changes), and nothing here knows what is in
 * them.
 *
 * Measured for 1 GiB: tee() and splice() between pipes 0.01 s each; read(2) into memory 0.19 s.
 */
import { enlargePipe, type Fd, makePipe, queued } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { moveNow, openNull, teeNow } from '../kernel/transfer.ts'

/** Two pipes, each as `[read end, write end]`. */
interface PipePair {
  /** The whole range. */
  kept: [Fd, Fd]
  /** What of it is still to be sent. */
  unsent: [Fd, Fd]
}

/** The bytes from `from` to `to` of a stream. */
export interface SplicedRange extends PipePair {
  from: number
  to: number
}

/** Fewer bytes are better copied. */
const LEAST = 64 * 2 ** 10
/** With pipes of 1 MiB, more than the window of a sender holds. */
const MOST_PAIRS = 16

export class SpliceBuffer {
  /** In the order of the stream; between them lie bytes that are kept elsewhere. */
  readonly #ranges: SplicedRange[] = []
  /** Empty pairs. */
  readonly #idle: PipePair[] = []
  /** Pairs that were made, idle or not. */
  #pairs = 0
  /** This user may not have even one pair of large pipes. */
  #unavailable = false
  /** /dev/null, once something was discarded. */
  #devNull: Fd | undefined

  /** Whether `pipe` holds enough bytes, and there are pipes to take them. */
  isWorth(pipe: Fd): boolean {
    if (this.#unavailable || queued(pipe) < LEAST) return false
    if (this.#pairs === 0) {
      const pair = this.#pair()
      if (pair !== undefined) this.#idle.push(pair)
    }
    return !this.#unavailable
  }

  /**
   * Takes what is in `pipe`, at most `most` bytes, as the range that begins at position `from`. Returns the number of
   * bytes: 0 where too many ranges are kept.
   */
  take(pipe: Fd, most: number, from: number): number {
    const pair = this.#pair()
    if (pair === undefined) return 0
    let bytes = 0
    try {
      bytes = teeNow(pipe, pair.kept[1], most)
    } finally {
      // `close` closes the idle pairs.
      if (bytes === 0) this.#idle.push(pair)
    }
    if (bytes === 0) return 0
    this.#ranges.push({ ...pair, from, to: from + bytes })
    moveNow(pipe, pair.unsent[1], bytes)
    return bytes
  }

  /** The range that `position` is in. */
  rangeAt(position: number): SplicedRange | undefined {
    return this.#ranges.find(({ from, to }) => from <= position && position < to)
  }

  /** Where the first range from `position` on begins; infinity if there is none. */
  nextRange(position: number): number {
    return this.#ranges.find(({ from }) => from >= position)?.from ?? Number.POSITIVE_INFINITY
  }

  /** A pipe with the bytes of `range` from `position` on, and nothing else. */
  pipeFrom({ kept, unsent, from, to }: SplicedRange, position: number): Fd {
    const left = queued(unsent[0])
    if (to - left === position) return unsent[0]
    this.#discard(unsent[0], left)
    const again = teeNow(kept[0], unsent[1], to - from)
    if (again !== to - from) throw new Error(`tee: ${again} of ${to - from} bytes`)
    this.#discard(unsent[0], position - from)
    return unsent[0]
  }

  /** What comes before `position` is not needed any more. */
  forget(position: number): void {
    while (this.#ranges[0] !== undefined && this.#ranges[0].to <= position) {
      const { kept, unsent, from, to } = this.#ranges.shift() as SplicedRange
      this.#discard(kept[0], to - from)
      this.#discard(unsent[0], queued(unsent[0]))
      this.#idle.push({ kept, unsent })
    }
  }

  /** Closes all pipes. */
  close(): void {
    for (const pair of [...this.#idle.splice(0), ...this.#ranges.splice(0)]) closePair(pair)
    if (this.#devNull !== undefined) closeFd(this.#devNull)
    this.#devNull = undefined
  }

  /** An empty pair; undefined where there are too many, or where the user may not have it. */
  #pair(): PipePair | undefined {
    const idle = this.#idle.pop()
    if (idle !== undefined || this.#pairs === MOST_PAIRS) return idle
    const pair = openPair()
    if (pair !== undefined) this.#pairs++
    else this.#unavailable = this.#pairs === 0
    return pair
  }

  #discard(pipe: Fd, bytes: number): void {
    this.#devNull ??= openNull()
    moveNow(pipe, this.#devNull, bytes)
  }
}

/** Undefined for a user whose share of pipe memory is used up. */
function openPair(): PipePair | undefined {
  const kept = makePipe()
  let unsent: [Fd, Fd]
  try {
    unsent = makePipe()
  } catch (reason) {
    for (const end of kept) closeFd(end)
    throw reason
  }
  const [keptBytes, unsentBytes] = [enlargePipe(kept[0]), enlargePipe(unsent[0])]
  // What fits into one must fit into the other.
  if (keptBytes === unsentBytes && keptBytes >= LEAST) return { kept, unsent }
  closePair({ kept, unsent })
  return undefined
}

function closePair({ kept, unsent }: PipePair): void {
  for (const end of [...kept, ...unsent]) closeFd(end)
}
