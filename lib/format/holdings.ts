/** What a cache holds, as its answer to `list` says it. docs/protocol/wire.md, Frames. Pure. */
import { Fault } from '../fault.ts'
import { enumOf } from './enums.ts'
import { numbers, readCount, u32 } from './image-list.ts'
import { LONGEST_ID, type SnapshotId, snapshotId } from './names.ts'

/** In the order of their numbers on the wire. */
export const holdingStates = [
  /** Its images come. */
  'arriving',
  'sealed',
  /** All images are here, the verdict is not known, and nobody restores. */
  'undecided',
  'restoring',
  /** The tasks are restored and do not run: the verdict is not known. */
  'held',
  /** The source is gone, and nothing runs: these images are the process. */
  'owning',
  /** Its process runs, and the images stay for more. */
  'retained',
  /** Removed, and still read, or needed by others. */
  'leaving',
  /** A chain that waits for its next part. */
  'chain',
  /** Owning, but a criu that could not be held has taken the images: whether it runs cannot be seen. */
  'taken',
] as const
export type HoldingState = (typeof holdingStates)[number]

export interface Holding {
  id: SnapshotId
  state: HoldingState
  /** It stays when its process runs. */
  pinned: boolean
  /** Rounds of a chain, else images. */
  count: number
  /** Bytes of memory that came with it and are still here. */
  bytes: number
  /** Bytes that it needs of the memory of others, where they are counted, or more than once of its own. */
  shared: number
  /** Since it was sealed, or began to arrive, or last grew. */
  seconds: number
}

export interface Listed {
  total: number
  holdings: Holding[]
}

/** Holdings in one list, the oldest first. A cache may hold more: the total says so. */
export const MOST_LISTED = 4096
const NUMBERS = 1 + 4 + 8 + 8 + 4
/** Bytes of the longest list. */
export const LONGEST_LISTING = 4 + MOST_LISTED * (1 + LONGEST_ID + NUMBERS)
const MOST_U32 = 2 ** 32 - 1
/** Beside the state. */
const PINNED = 0x80

/** The first `MOST_LISTED` of them; `total` are there. */
export function encodeHoldings({ total, holdings }: Listed): Buffer {
  const parts = holdings
    .slice(0, MOST_LISTED)
    .flatMap(({ id, state, pinned, count, bytes, shared, seconds }) => [
      Buffer.of(id.length),
      Buffer.from(id),
      Buffer.of(holdingStates.indexOf(state) + (pinned ? PINNED : 0)),
      u32(count),
      numbers(BigInt(bytes), BigInt(shared)),
      u32(Math.min(Math.floor(seconds), MOST_U32)),
    ])
  return Buffer.concat([u32(total), ...parts])
}

/** Throws `FORMAT`, `LIMIT` or `NAME`. */
export function decodeHoldings(body: Buffer): Listed {
  const total = body.readUInt32LE(0)
  const holdings: Holding[] = []
  for (let at = 4; at < body.length; ) {
    const id = at + 1
    const end = id + body.readUInt8(at)
    if (end + NUMBERS > body.length) throw new Fault('FORMAT', 'damaged list of snapshots')
    const state = body.readUInt8(end)
    holdings.push({
      id: snapshotId(body.toString('latin1', id, end)),
      state: enumOf(holdingStates, state % PINNED, 'listed'),
      pinned: state >= PINNED,
      count: body.readUInt32LE(end + 1),
      bytes: readCount(body, end + 5),
      shared: readCount(body, end + 13),
      seconds: body.readUInt32LE(end + 21),
    })
    at = end + NUMBERS
  }
  if (holdings.length > MOST_LISTED) {
    throw new Fault('LIMIT', `a list of ${holdings.length} snapshots, at most ${MOST_LISTED} are allowed`)
  }
  if (holdings.length !== Math.min(total, MOST_LISTED)) throw new Fault('FORMAT', 'damaged list of snapshots')
  return { total, holdings }
}
