/**
 * How dumps, and the rounds before them, get from a proxy to its cache: an interface, and the way by our wire. The other way is that of `criu --remote`
 * (remote-proxy.ts).
 */

import type { CriuCommand } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { deliverAndForget } from '../handover/deliver-verdict.ts'
import { reportOutcome, tasksRunOnFault } from '../handover/outcome.ts'
import { type HandoverOptions, handOver } from '../handover/source.ts'
import { type PendingVerdict, readPendingVerdicts } from '../handover/verdict-log.ts'
import { memoryOfTree } from '../kernel/process.ts'
import type { Report } from '../progress.ts'
import { connectMany } from '../stream/connection-groups.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link } from '../stream/link.ts'
import type { Tuning } from '../stream/tuning.ts'
import { abandonChain, type PreCopyChain, type SentRound, sendRound } from './send-round.ts'

export interface Delivery {
  /** How long a criu may say nothing. */
  readonly timeoutMs: number
  /**
   * Sends what one criu dumps, and lets it go when the cache has it, which is returned. What went wrong is reported or thrown; criu has failed then,
   * unless it had written all and waits for nobody.
   */
  dump(criu: IncomingDump, dump: DumpToDeliver, place: DeliveryPlace): Promise<boolean>
  /** Sends a pre-dump as the next round of its chain. Throws what went wrong; the chain is over then. */
  round(chain: PreCopyChain, source: PageServer, round: RoundToDeliver, place: DeliveryPlace): Promise<SentRound>
  /** Tells the cache that no dump follows. */
  abandon(chain: PreCopyChain): Promise<void>
  /** What an earlier proxy in that place still owes its targets: being paid. */
  debts(place: DeliveryPlace): { id: SnapshotId; paid: Promise<void> }[]
}

export interface DumpToDeliver {
  id: SnapshotId
  /** Undefined where the criu cannot be seen. */
  command?: CriuCommand | undefined
  /** By `--remote`: its snapshot id, after those of the rounds before it. */
  snapshots?: readonly string[]
  /** Whose last part it is, if it goes on with any. */
  chain?: PreCopyChain | undefined
  layer?: HandoverOptions['layer']
}

export interface RoundToDeliver {
  /** The process tree. */
  tree: number
  /** As of a dump. */
  snapshots: readonly string[]
}

export interface DeliveryPlace {
  /** Where our action script is, and verdicts are kept. */
  directory: string
  report: Report
  signal: AbortSignal
  /** Called for progress. */
  onBytes: (bytes: number) => void
}

export interface FerryDelivery {
  cache: Endpoint
  /** How many connections carry a snapshot. */
  connections: number
  /** What the cache must have before CRIU may kill the tasks. */
  until: Until
  tuning: Tuning
  /** How long the cache may be out of reach, and how long it may take to do what `until` says; how long criu may say nothing. */
  timeoutMs: number
}

const DELIVERY_MS = 5000

export function ferryDelivery({ cache, connections, until, tuning, timeoutMs }: FerryDelivery): Delivery {
  const connect = (stop: AbortSignal): Promise<Link> => connectMany(connections, cache, timeoutMs, stop)
  const connectSoon = (stop: AbortSignal): Promise<Link> => connectEndpoint(cache, DELIVERY_MS, stop)

  /** A signal leaves the debt on disk for the next proxy. */
  async function payCache(pending: PendingVerdict, { report, signal }: DeliveryPlace): Promise<void> {
    reportOutcome(pending.id, await deliverAndForget(pending, { connect: connectSoon, report, signal }), report)
  }

  return {
    timeoutMs,
    async dump(criu, { id, layer, command }, place) {
      const { directory, report, signal, onBytes } = place
      const begun = performance.now()
      const onFailed = (fault: Error): void => report({ event: 'failed', what: `snapshot ${id}`, fault })
      const leaves = command?.leaves === true
      const agreement = { until, leaves, connect, tuning, layer, resumes: true, timeoutMs, signal, onBytes, onFailed }
      const end = await handOver(criu, { id, gates: directory, directory, ...agreement }).finally(criu.remove)
      reportSmallPipes(report)
      if ('reason' in end) {
        if (end.pending !== undefined) await payCache(end.pending, place)
        return false
      }
      const { snapshot, spared, verdict, fate, pending } = end
      const ms = performance.now() - begun
      const { images, bytes } = snapshot
      if (verdict === 'drop') onFailed(tasksRunOnFault())
      else report({ event: 'sent', id, images: images.length, bytes, spared, ms, verified: true })
      if (fate === undefined) await payCache(pending, place)
      else reportOutcome(id, { verdict, fate }, report)
      return verdict !== 'drop'
    },
    round(chain, source, { tree }, { signal }) {
      const reserve = chain.under === 0 ? memoryOfTree(tree) : 0
      return sendRound(chain, source, { connect, tuning, reserve, timeoutMs, signal })
    },
    abandon: (chain) => abandonChain(chain, connectSoon, AbortSignal.timeout(DELIVERY_MS)),
    debts: (place) =>
      readPendingVerdicts(place.directory).map((pending) => ({ id: pending.id, paid: payCache(pending, place) })),
  }
}
