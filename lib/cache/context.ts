/** What the parts of a cache share: its options, what it holds, and what is known of one connection. */
import type { Credentials } from '../credentials.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import type { Report } from '../progress.ts'
import type { Account, PeerMemory } from '../store/accounting.ts'
import type { Snapshots } from '../store/snapshots.ts'
import type { ConnectionGroups } from '../stream/connection-groups.ts'
import type { FrameReader, FrameWriter } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import type { TargetLink } from '../stream/resuming-receiver.ts'
import type { Connection } from './connections.ts'
import type { FailureLog } from './failure-log.ts'
import type { Handovers } from './handovers.ts'

export interface CacheOptions {
  host: string
  /** 0: the kernel chooses; reported. Undefined: no port, only `first`. */
  port: number | undefined
  /** A listening socket that we were given; `host` and `port` are its address. */
  listener?: Fd | undefined
  /** A connection that we were given: it may be silent as long as it likes. */
  first?: Link | undefined
  /** What a client must prove; plain TCP if undefined. */
  credentials: Credentials | undefined
  /** Users of this host who may speak on the port where nothing has to be proved, beside root and our own; undefined for everybody. */
  allowUids: readonly number[] | undefined
  directory: string
  /** The snapshot that `criu restore` gets; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** Bytes of it that are ready for the next snapshot. */
  reserve: number
  /**
   * How long a restore may wait for its snapshot, an unfinished chain is safe when memory runs out, and nothing may move of a snapshot
   * that comes or goes.
   */
  timeoutMs: number
  /** Restore every snapshot that comes with a hand-over as soon as it is here. */
  restore: { criu: string; options: readonly string[] } | undefined
  /** Give the memory of a snapshot back while a restore that can be held takes it: for one try. */
  releaseEarly: boolean
  /** A snapshot whose process runs stays, for more restores. */
  keep: boolean
  /** How to talk with proxies and clients that come over the port: our wire if undefined. Tells what fails, and closes the link. */
  hear?: ((line: TargetLink, context: CacheContext, policy: ConnectionPolicy) => Promise<void>) | undefined
  /** Opens another way to restore on this host, beside `criu restore --stream`: `script` is that of `--action-script`. */
  openRestores?: (script: string, context: CacheContext) => { close(): void }
  /** Offer the pages that are here to senders, and share them. */
  dedup: boolean
  report: Report
  signal: AbortSignal
  onStatus?: (listener: () => void) => void
}

/** A UNIX socket that speaks the wire, in the work directory: for this host's root, and for verdicts by hand. */
export const CACHE_SOCKET = 'cache.sock'

/** What every conversation needs. */
export interface CacheContext {
  snapshots: Snapshots
  handovers: Handovers
  options: CacheOptions
  /** Snapshots on their way whose sender may come back over another link. */
  incoming: Map<SnapshotId, TargetLink>
  /** Rounds on their way: their tasks run, and who sends them may have fallen silent. */
  rounds: Map<SnapshotId, { link: Link; over: Promise<void> }>
  /** Connections that wait for those that they belong to. */
  groups: ConnectionGroups
  /** What is held for peers beside images. */
  peers: PeerMemory
  /** Tells what peers make fail, and, more briefly, what those do who have not spoken. */
  failures: FailureLog
  silentFailures: FailureLog
}

/** One conversation. */
export interface Conversation {
  line: TargetLink
  link: Link
  connection: Connection
  reader: FrameReader
  writer: FrameWriter
  /** What is held for the peer beside images. */
  memory: Account
}

export interface ConnectionPolicy {
  /** Its place among the others. */
  connection: Connection
  /** Whose share it counts to. */
  source: string
  /** It is of this host, and of root or our own user: its verdicts need no token. */
  trusted?: boolean
  /** It speaks over several connections already. */
  joined?: boolean
}
