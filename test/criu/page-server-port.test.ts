import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openPagePort } from '../../lib/criu/page-server-port.ts'
import type { Fault } from '../../lib/fault.ts'
import { within } from '../expect.ts'

const test = suite('criu/page-server-port')

/** Takes away all descriptors of this process but one. What has just ended gives some back for a moment. */
async function allButOne(): Promise<() => void> {
  spawnSync('prlimit', ['--pid', String(process.pid), '--nofile=256:'])
  const taken: number[] = []
  for (let before = -1; taken.length > before; await setTimeout(200)) {
    before = taken.length
    try {
      for (;;) taken.push(openSync('/dev/null', 'r'))
    } catch {}
  }
  closeSync(taken.pop() as number)
  return () => taken.forEach(closeSync)
}

test('a client that connects when there are no descriptors left is disconnected, and the port stays', async () => {
  const refusals: Fault[] = []
  const port = await openPagePort(
    0,
    () => {},
    (fault) => refusals.push(fault),
  )
  const script = 'for time in 1 2; do read -r; exec 3<>/dev/tcp/127.0.0.1/$0; read -r <&3; echo; done'
  const client = spawn('bash', ['-c', script, String(port.port)], { stdio: ['pipe', 'pipe', 'ignore'] })
  const come = async (): Promise<Fault | undefined> => {
    client.stdin.write('\n')
    await within(once(client.stdout, 'data'), 'the end of the connection')
    return refusals.at(-1)
  }
  const give = await allButOne()
  const fault = await come().finally(give)
  assert.is(fault?.message, 'cannot see who connected to the page server port (EMFILE)')
  assert.is((await come())?.code, 'REFUSED')
  assert.is(refusals.length, 2)
  port.close()
})

test.run()
