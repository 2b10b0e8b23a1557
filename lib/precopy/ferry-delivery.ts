/** Delivers dumps and rounds to an image-cache over our own wire: a dump is handed over, and can be taken back. */
import { reportSmallPipes } from '../criu/small-pipes.ts'
import type { Until } from '../format/enums.ts'
import { deliverAndForget } from '../handover/deliver-verdict.ts'
import { reportOutcome, tasksRunOnFault } from '../handover/outcome.ts'
import { handOver } from '../handover/source.ts'
import { type PendingVerdict, readPendingVerdicts } from '../handover/verdict-log.ts'
import { memoryOfTree } from '../kernel/process.ts'
import { connectMany } from '../stream/connection-groups.ts'
import { connectEndpoint, type Endpoint } from '../stream/endpoint.ts'
import type { Link } from '../stream/link.ts'
import type { Tuning } from '../stream/tuning.ts'
import type { Delivery, DeliveryContext } from './delivery.ts'
import { abandonChain, sendRound } from './send-round.ts'

export interface FerryDeliveryOptions {
  cache: Endpoint
  /** How many connections carry a snapshot. */
  connections: number
  /** What the cache must have done before CRIU may kill the tasks. */
  until: Until
  tuning: Tuning
  /**
   * How long the cache may be out of reach, how long it may take to do what `until` says, and how long criu may say
   * nothing.
   */
  timeoutMs: number
}

/** How long one attempt to reach the cache with a verdict may take. */
const CONNECT_MS = 5000

export function ferryDelivery({ cache, connections, until, tuning, timeoutMs }: FerryDeliveryOptions): Delivery {
  const connect = (signal: AbortSignal): Promise<Link> => connectMany(connections, cache, timeoutMs, signal)
  const connectSoon = (signal: AbortSignal): Promise<Link> => connectEndpoint(cache, CONNECT_MS, signal)

  /** A signal leaves the verdict on disk for the next proxy. */
  async function deliverLate(pending: PendingVerdict, { report, signal }: DeliveryContext): Promise<void> {
    reportOutcome(pending.id, await deliverAndForget(pending, { connect: connectSoon, report, signal }), report)
  }

  return {
    timeoutMs,
    async dump(criu, { id, layer, command }, context) {
      const { directory, report, signal, onBytes } = context
      const begun = performance.now()
      const onFailed = (fault: Error): void => report({ event: 'failed', what: `snapshot ${id}`, fault })
      const leaves = command?.leaves === true
      const agreement = { until, leaves, connect, tuning, layer, resumes: true, timeoutMs, signal, onBytes, onFailed }
      const end = await handOver(criu, { id, gates: directory, directory, ...agreement }).finally(criu.remove)
      reportSmallPipes(report)
      if ('reason' in end) {
        if (end.pending !== undefined) await deliverLate(end.pending, context)
        return false
      }
      const { snapshot, spared, verdict, fate, pending } = end
      const ms = performance.now() - begun
      const { images, bytes } = snapshot
      if (verdict === 'drop') onFailed(tasksRunOnFault())
      else report({ event: 'sent', id, images: images.length, bytes, spared, ms, verified: true })
      if (fate === undefined) await deliverLate(pending, context)
      else reportOutcome(id, { verdict, fate }, report)
      return verdict !== 'drop'
    },
    round(chain, source, { tree }, { signal }) {
      const reserve = chain.under === 0 ? memoryOfTree(tree) : 0
      return sendRound(chain, source, { connect, tuning, reserve, timeoutMs, signal })
    },
    abandon: (chain) => abandonChain(chain, connectSoon, AbortSignal.timeout(CONNECT_MS)),
    recover: (context) =>
      readPendingVerdicts(context.directory).map((pending) => ({
        id: pending.id,
        delivered: deliverLate(pending, context),
      })),
  }
}
