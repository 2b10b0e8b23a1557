/**
 * How a proxy delivers dumps, and the rounds before them, to its cache. There are two ways: our own wire
 * (ferry-delivery.ts) and the wire of `criu --remote` (lib/criu-remote/proxy.ts).
 */
import type { CriuCommand } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import type { SnapshotId } from '../format/names.ts'
import type { HandoverOptions } from '../handover/source.ts'
import type { Report } from '../progress.ts'
import type { PreCopyChain, SentRound } from './send-round.ts'

export interface Delivery {
  /** How long a criu may say nothing. */
  readonly timeoutMs: number
  /**
   * Sends what one criu dumps, and lets criu go when the cache has it. Returns whether the cache has it. A failure is
   * reported or thrown; criu has failed then, unless it had written all and waits for nobody.
   */
  dump(criu: IncomingDump, request: DumpRequest, context: DeliveryContext): Promise<boolean>
  /** Sends a pre-dump as the next round of its chain. The chain is over when this throws. */
  round(chain: PreCopyChain, source: PageServer, request: RoundRequest, context: DeliveryContext): Promise<SentRound>
  /** Tells the cache that no dump follows. */
  abandon(chain: PreCopyChain): Promise<void>
  /** Begins to deliver the verdicts that an earlier proxy left in the directory. */
  recover(context: DeliveryContext): { id: SnapshotId; delivered: Promise<void> }[]
}

export interface DumpRequest {
  id: SnapshotId
  /** Undefined where the criu cannot be seen. */
  command?: CriuCommand | undefined
  /** The snapshot id of a `criu --remote`, after those of the rounds before it. */
  snapshots?: readonly string[]
  /** The chain that this dump is the last layer of, if there is one. */
  chain?: PreCopyChain | undefined
  layer?: HandoverOptions['layer']
}

export interface RoundRequest {
  /** The process tree. */
  tree: number
  /** See `DumpRequest`. */
  snapshots: readonly string[]
}

export interface DeliveryContext {
  /** The directory of our action script, and of the verdicts. */
  directory: string
  report: Report
  signal: AbortSignal
  /** Called for progress. */
  onBytes: (bytes: number) => void
}
