/** What the modules of a cache share: its options, what it holds, and what is known of one connection. */
import type { Credentials } from '../credentials.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import type { Account, PeerMemory } from '../store/accounting.ts'
import type { Snapshots } from '../store/snapshots.ts'
import type { ConnectionGroups } from '../stream/connection-groups.ts'
import type { FrameReader, FrameWriter } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import type { TargetLink } from '../stream/resuming-receiver.ts'
import type { Connection } from './connection-limit.ts'
import type { FailureLog } from './failure-log.ts'
import type { CacheRestoreOptions, Handovers } from './handovers.ts'

export interface CacheOptions extends CacheRestoreOptions {
  host: string
  /** 0: the kernel chooses, and the number is reported. Undefined: no port, only `first`. */
  port: number | undefined
  /** A listening socket that was passed to us; `host` and `port` are its address. */
  listener?: Fd | undefined
  /** A connection that was passed to us: it may be silent as long as it likes. */
  first?: Link | undefined
  /** What a client must prove; plain TCP if undefined. */
  credentials: Credentials | undefined
  /** Without credentials: users of this host who may connect, beside root and our own; undefined for everybody. */
  allowUids: readonly number[] | undefined
  /** The snapshot that `criu restore` gets; the newest sealed one if undefined. */
  id: SnapshotId | undefined
  /** Most bytes of memory for images. */
  maxMemory: number
  /** Bytes of it that are kept ready for the next snapshot. */
  reserve: number
  /**
   * How long a restore waits for its snapshot, how long an unfinished chain is safe when memory runs out, and how long
   * nothing may move of a snapshot that is received or sent.
   */
  timeoutMs: number
  /** Serves a connection over the port, reports what fails, and closes the link. Speaks our wire if undefined. */
  handler?: ConnectionHandler | undefined
  /**
   * Opens another way to restore on this host, beside `criu restore --stream`. `script`: the path for
   * `--action-script`.
   */
  openRestores?: (script: string, context: CacheContext) => { close(): void }
  /** Offer the pages that are here to senders, and share them. */
  dedup: boolean
  onStatus?: (listener: () => void) => void
}

export type ConnectionHandler = (link: TargetLink, context: CacheContext, policy: ConnectionPolicy) => Promise<void>

/** A UNIX socket in the work directory that speaks the wire: for root of this host, and for verdicts by hand. */
export const CACHE_SOCKET = 'cache.sock'

/** What the handler of a connection needs of its cache. */
export interface CacheContext {
  snapshots: Snapshots
  handovers: Handovers
  options: CacheOptions
  /** Links of incoming snapshots whose sender may resume over a new connection. */
  resumable: Map<SnapshotId, TargetLink>
  /**
   * Incoming pre-copy rounds. Their tasks still run, so one can be removed by hand. `over`: it is sealed or dropped.
   */
  incomingRounds: Map<SnapshotId, { link: Link; over: Promise<void> }>
  /** Connections that wait for the others of their striped link. */
  groups: ConnectionGroups
  /** Memory that is held for peers beside images. */
  peerMemory: PeerMemory
  /** Reports failures of peers that have sent a frame. */
  failures: FailureLog
  /** Reports failures of peers that have sent none, with fewer lines. */
  earlyFailures: FailureLog
}

export interface ConnectionPolicy {
  /** Its entry in the table of connections. */
  connection: Connection
  /** The user or address whose share it counts to. */
  origin: string
  /** The client is root or our own user on this host: its verdicts need no token. */
  trusted?: boolean
  /** It is a striped link already. */
  joined?: boolean
}

/** The client at the other end of one connection. */
export interface Peer extends ConnectionPolicy {
  /** The link that a sender may resume over another connection. */
  targetLink: TargetLink
  /** The same link; what passes is counted for the connection. */
  link: Link
  reader: FrameReader
  writer: FrameWriter
  /** Memory that is held for the peer beside images. */
  memory: Account
}
