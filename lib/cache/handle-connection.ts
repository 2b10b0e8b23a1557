/** Serves one connection to the cache: reads its first frame, and calls the code that deals with it. */

import type { Fault } from '../fault.ts'
import type { FrameOf } from '../format/frame-types.ts'
import { asFault } from '../format/refusal.ts'
import { accepting, frameReader, frameWriter, unexpected } from '../stream/frames.ts'
import { type TargetLink, unknownSnapshot } from '../stream/resuming-receiver.ts'
import { answerAdmin } from './admin.ts'
import type { CacheContext, ConnectionPolicy, Peer } from './context.ts'
import { linger, sendRefusal } from './graceful-close.ts'
import { receive } from './receive.ts'
import { sendStored } from './send.ts'

/** The first frames that the cache takes, over its port and over its own socket. */
const firstFrames = accepting('snapshot', 'get', 'handOver', 'verdict', 'resume', 'join')
const trustedFirstFrames = accepting('snapshot', 'get', 'handOver', 'verdict', 'resume', 'list', 'remove', 'pin')
/** What follows `handOver` from a client that restores. */
const afterHandOver = accepting('get')

type FirstFrame = FrameOf<'snapshot' | 'get' | 'handOver' | 'verdict' | 'resume' | 'join' | 'list' | 'remove' | 'pin'>

/** Answers the client at the other end. Reports what fails, and closes the link. */
export async function handleConnection(
  targetLink: TargetLink,
  context: CacheContext,
  policy: ConnectionPolicy,
): Promise<void> {
  const { connection, origin, trusted } = policy
  const memory = context.peerMemory.open()
  connection.onClose(() => memory.close())
  const { link } = targetLink
  const writer = frameWriter(link.outlet)
  const reader = frameReader(link.inlet, { onGot: (position) => targetLink.onGot(position), memory })
  /** Why the table of connections closed it: whatever fails then follows from that. */
  let closed: Fault | undefined
  let { earlyFailures: failures } = context
  let what = link.peer
  try {
    await writer.send({ type: 'hello' })
    const frame = await reader.next(trusted ? trustedFirstFrames : firstFrames)
    if (frame === undefined) return
    connection.beforeClose((fault) => {
      closed = fault
      return sendRefusal(link, writer, fault)
    })
    failures = context.failures
    // A resumed link goes on in the entry of its first connection.
    if (frame.type !== 'resume') connection.enter('waiting')
    if (frame.type === 'snapshot' || frame.type === 'resume') what = `snapshot ${frame.id}`
    await dispatch(frame, { ...policy, targetLink, link, reader, writer, memory }, context)
  } catch (error) {
    const fault = asFault(error)
    failures.tell(origin, what, closed ?? fault)
    if (closed === undefined) await linger(link, () => sendRefusal(link, writer, fault))
  } finally {
    link.destroy()
    for (const [id, other] of context.resumable) if (other === targetLink) context.resumable.delete(id)
  }
}

async function dispatch(frame: FirstFrame, peer: Peer, context: CacheContext): Promise<void> {
  const { handovers, resumable, groups } = context
  const { targetLink, reader, writer, origin, trusted, joined } = peer
  switch (frame.type) {
    case 'snapshot':
      return receive(frame.id, peer, context)
    case 'get':
      return sendStored(frame, false, peer, context)
    case 'handOver':
      return sendStored(await reader.expect(afterHandOver), true, peer, context)
    case 'verdict':
      if (!trusted) handovers.checkToken(frame.id, frame.token)
      return writer.send({ type: 'fate', fate: await handovers.decide(frame.id, frame.verdict) })
    case 'list':
    case 'remove':
    case 'pin':
      return writer.send(await answerAdmin(frame, context))
    case 'resume': {
      const broken = resumable.get(frame.id)
      if (broken === undefined) throw unknownSnapshot()
      return broken.resume(frame, targetLink)
    }
    case 'join':
      if (joined) throw unexpected(frame)
      return groups.join(frame, targetLink, origin)
  }
}
