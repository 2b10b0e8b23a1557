/** The frames of the wire as values: their numbers, and what each says. */

import type { CodecName, Fate, RefusalCode, Until, Verdict } from './enums.ts'
import type { Holding } from './holdings.ts'
import type { ImageEntry } from './image-list.ts'
import type { ImageName, SnapshotId } from './names.ts'
import type { Join } from './stripes.ts'

export const frameType = {
  snapshot: 1,
  image: 2,
  data: 3,
  imageEnd: 4,
  snapshotEnd: 5,
  failed: 6,
  handOver: 7,
  resume: 8,
  reserve: 9,
  packed: 10,
  zeros: 11,
  join: 12,
  layer: 13,
  list: 14,
  unchecked: 15,
  hello: 16,
  get: 17,
  ack: 18,
  sealed: 19,
  refused: 20,
  ready: 21,
  verdict: 22,
  fate: 23,
  got: 24,
  reserved: 25,
  joined: 26,
  listed: 27,
  remove: 28,
  recall: 29,
  recalled: 30,
  same: 31,
  pin: 32,
} as const
export type FrameName = keyof typeof frameType
export type FrameType = (typeof frameType)[FrameName]

/** A snapshot that is a part of a chain. */
export interface Layer {
  /** Rounds of the chain that the receiver has already. */
  under: number
  /** A full dump that may have pages in the rounds under it; else a round, which has only pages. */
  last: boolean
  /** 16 random bytes, the same for the whole chain: who does not know them can neither continue, replace nor end it. */
  token: Buffer
}

export type Frame =
  | { type: 'snapshot'; id: SnapshotId }
  | { type: 'image'; channel: number; name: ImageName }
  | { type: 'data'; channel: number; offset: number; length: number }
  /** `length` bytes follow, which are `raw` bytes of the image. */
  | { type: 'packed'; channel: number; offset: number; codec: CodecName; raw: number; length: number }
  /** `raw` zero bytes of the image. */
  | { type: 'zeros'; channel: number; offset: number; raw: number }
  | { type: 'imageEnd'; channel: number; size: number; digest: bigint }
  | { type: 'snapshotEnd'; images: ImageEntry[]; digest: bigint }
  | { type: 'failed'; code: RefusalCode; reason: string }
  /** With a token the conversation outlives its link. */
  | { type: 'handOver'; until: Until; token?: Buffer }
  /** The first frame on a new link: `offset` bytes of the receiver's stream are here. */
  | { type: 'resume'; offset: number; token: Buffer; id: SnapshotId }
  /** About `offset` bytes of images will come: a receiver with memory may make it ready, and says `reserved`. */
  | { type: 'reserve'; offset: number }
  | ({ type: 'layer' } & Layer)
  /** Images have no digests: each is 0, and only sizes are compared. */
  | { type: 'unchecked' }
  | { type: 'hello' }
  | { type: 'get'; id: SnapshotId | undefined; timeoutMs: number }
  | { type: 'ack'; channel: number; offset: number }
  | { type: 'sealed'; digest: bigint }
  | { type: 'refused'; code: RefusalCode; reason: string }
  | { type: 'ready' }
  /** The token is that of the `handOver`; zeros where there was none. */
  | { type: 'verdict'; verdict: Verdict; token: Buffer; id: SnapshotId }
  | { type: 'fate'; fate: Fate }
  /** `offset` bytes of the other's stream are here. */
  | { type: 'got'; offset: number }
  /** `offset` bytes of memory are ready. */
  | { type: 'reserved'; offset: number }
  /** Which pages does the receiver hold? The sender has the digests of `offset` of them. */
  | { type: 'recall'; offset: number }
  /**
   * The digests of the next pages, of `total` in all (see page-digest.ts). A receiver that `offers` nothing takes no
   * `same` either.
   */
  | { type: 'recalled'; offers: boolean; total: number; digests: Uint32Array }
  /**
   * Pages that the receiver has: of what it offered, from this number on, or of this snapshot, from this page of the
   * image on channel `source` on.
   */
  | { type: 'same'; channel: number; offset: number; source: number; first: number; pages: number }
  /** The first frame of one of several connections that carry one stream, and its answer. */
  | ({ type: 'join' } & Join)
  | { type: 'joined' }
  /**
   * What a person asks the cache on this host, and its answer: `total` holdings are there, and perhaps not all are
   * listed.
   */
  | { type: 'list' }
  | { type: 'listed'; total: number; holdings: Holding[] }
  | { type: 'remove'; id: SnapshotId }
  | { type: 'pin'; id: SnapshotId; pinned: boolean }

/** The frames of one type, or of some. */
export type FrameOf<Name extends FrameName> = Extract<Frame, { type: Name }>
