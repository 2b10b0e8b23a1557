/**
 * Bytes of frozen tasks on their way from CRIU's pipe to a socket, and kept until the other end has them, without ever being
 * read here: references to the tasks' pages, held in pairs of pipes. One of a pair is what is still to be sent; the other, made
 * with tee(), is what is sent again when the link breaks. They are what the tasks' memory is, so the tasks must not run meanwhile
 * (pipe-reader.ts says what changes), and nobody here can say what was in them.
 *
 * Measured for 1 GiB: tee() and splice() between pipes 0.01 s each; read(2) into memory 0.19 s.
 */
import { Fault } from '../fault.ts'
import { asFd, check, enlargePipe, type Fd, makePipe, queued } from '../kernel/fd.ts'
import { EINTR, O_CLOEXEC, O_WRONLY, open, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, splice, tee } from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { Outlet } from './link.ts'

interface Pair {
  /** `[read end, write end]`. */
  kept: [Fd, Fd]
  unsent: [Fd, Fd]
}

/** Bytes `from` to `to` of a stream. */
export interface SplicedRange extends Pair {
  from: number
  to: number
}

export interface SpliceBuffer {
  /** Whether enough is in the pipe, and there are pipes to take it. */
  worth(pipe: Fd): boolean
  /** Takes what is in `pipe`, at most `most` bytes, as what comes at `from`. Returns how many: 0 where too many are kept. */
  take(pipe: Fd, most: number, from: number): number
  /** The one in which `position` is. */
  at(position: number): SplicedRange | undefined
  /** Where the next one begins; infinity if there is none. */
  next(position: number): number
  /** What comes before `position` is not needed any more. */
  forget(position: number): void
  /** A pipe with the bytes from `position` on, and nothing else. */
  from(passage: SplicedRange, position: number): Fd
  close(): void
}

/** Fewer bytes are better copied. */
const LEAST = 64 * 2 ** 10
/** With pipes of 1 MiB, more than the window of a sender holds. */
const MOST_PAIRS = 16
const HOW = SPLICE_F_MOVE | SPLICE_F_NONBLOCK

export function openSpliceBuffer(): SpliceBuffer {
  const passages: SplicedRange[] = []
  const spare: Pair[] = []
  let pairs = 0
  /** There is not one pair to be had. */
  let poor = false
  let nowhere: Fd | undefined

  function pair(): Pair | undefined {
    const one = spare.pop()
    if (one !== undefined || pairs === MOST_PAIRS) return one
    const kept = makePipe()
    let unsent: [Fd, Fd]
    try {
      unsent = makePipe()
    } catch (reason) {
      for (const end of kept) closeFd(end)
      throw reason
    }
    const sizes = [enlargePipe(kept[0]), enlargePipe(unsent[0])]
    // What fits into one fits into the other; a user whose share of pipes is used up copies.
    if (sizes[0] === sizes[1] && (sizes[0] as number) >= LEAST) {
      pairs++
      return { kept, unsent }
    }
    shut({ kept, unsent })
    poor = pairs === 0
    return undefined
  }

  function shut({ kept, unsent }: Pair): void {
    for (const end of [...kept, ...unsent]) closeFd(end)
  }

  function drop(pipe: Fd, bytes: number): void {
    nowhere ??= asFd(check(open('/dev/null', O_WRONLY | O_CLOEXEC, 0), 'open /dev/null'))
    move(pipe, nowhere, bytes)
  }

  return {
    worth(pipe) {
      if (poor || queued(pipe) < LEAST) return false
      const first = pairs === 0 ? pair() : undefined
      if (first !== undefined) spare.push(first)
      return !poor
    },
    take(pipe, most, from) {
      const taken = pair()
      if (taken === undefined) return 0
      const bytes = tee(pipe, taken.kept[1], most, SPLICE_F_NONBLOCK)
      // Whatever goes wrong with it: it is closed at the end.
      if (bytes <= 0) spare.push(taken)
      if (bytes === 0) return 0
      check(bytes, 'tee')
      passages.push({ ...taken, from, to: from + bytes })
      move(pipe, taken.unsent[1], bytes)
      return bytes
    },
    at: (position) => passages.find(({ from, to }) => from <= position && position < to),
    next: (position) => passages.find(({ from }) => from >= position)?.from ?? Number.POSITIVE_INFINITY,
    forget(position) {
      while (passages[0] !== undefined && passages[0].to <= position) {
        const { kept, unsent, from, to } = passages.shift() as SplicedRange
        drop(kept[0], to - from)
        drop(unsent[0], queued(unsent[0]))
        spare.push({ kept, unsent })
      }
    },
    from({ kept, unsent, from, to }, position) {
      const left = queued(unsent[0])
      if (to - left === position) return unsent[0]
      drop(unsent[0], left)
      const again = tee(kept[0], unsent[1], to - from, SPLICE_F_NONBLOCK)
      if (again !== to - from) throw new Error(`tee: ${again} of ${to - from} bytes`)
      drop(unsent[0], position - from)
      return unsent[0]
    },
    close() {
      for (const each of [...spare.splice(0), ...passages.splice(0)]) shut(each)
      if (nowhere !== undefined) closeFd(nowhere)
      nowhere = undefined
    },
  }
}

export async function spliceOver({ splice }: Outlet, pipe: Fd, bytes: number): Promise<void> {
  if (splice === undefined) throw new Error('a link that takes no pages after one that did')
  await splice(pipe, bytes)
}

/** Both are there at once: the bytes, and the room. */
function move(from: Fd, to: Fd, bytes: number): void {
  for (let left = bytes; left > 0; ) {
    const moved = splice(from, null, to, null, left, HOW)
    if (moved > 0) left -= moved
    else if (moved !== -EINTR) {
      check(moved, 'splice')
      throw new Fault('IO', `splice: ${left} of ${bytes} bytes are missing`)
    }
  }
}
