/** Another user of this host who listens where a cache is expected. He is user 65534 here. */
import { type ChildProcess, spawn } from 'node:child_process'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { connectUnix } from '../../lib/kernel/unix.ts'
import { within } from '../expect.ts'
import { isRoot } from '../kernel/fds.ts'
import { type Ran, run, start, temporary } from '../support/run.ts'

const test = suite('scripts/listener-of-another')
const HE = '65534'

/** Says how many bytes each client has sent when it has ended. */
const listener = `
const server = require('node:net').createServer((client) => {
  let bytes = 0
  client.on('data', (part) => { bytes += part.length }).on('error', () => {})
  client.on('close', () => console.log('got ' + bytes))
})
server.listen(0, '127.0.0.1', () => console.log('port ' + server.address().port))
setTimeout(() => process.exit(), 60000)
`

interface Listening {
  port: string
  /** What he got, when the next client has left. */
  got(): Promise<string>
  stop(): void
}

async function hisListener(): Promise<Listening> {
  const as = ['--reuid', HE, '--regid', HE, '--clear-groups']
  const child: ChildProcess = spawn('setpriv', [...as, process.execPath, '-e', listener], { cwd: '/' })
  const lines: string[] = []
  const waiting: ((line: string) => void)[] = []
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    for (const line of text.trim().split('\n')) (waiting.shift() ?? ((late: string) => lines.push(late)))(line)
  })
  const next = (): Promise<string> =>
    within(new Promise<string>((resolve) => (lines.length > 0 ? resolve(lines.shift() ?? '') : waiting.push(resolve))))
  const port = (await next()).replace('port ', '')
  return { port, got: next, stop: () => void child.kill() }
}

function refused({ code, stderr }: Ran, port: string): void {
  assert.is(code, 1, stderr)
  assert.match(stderr, `error: user ${HE} of this host listens at 127.0.0.1:${port}\n`)
  assert.match(stderr, `--allow-uid ${HE}`)
}

if (!isRoot) console.log('skipped: only root can be another user')
else {
  test('nothing is said to him: neither by a proxy, whose dump fails, nor by restore-from-socket', async () => {
    const { path, remove } = temporary()
    const his = await hisListener()
    const at = ['--port', his.port]
    try {
      const proxy = start('proxy', [...at, '-D', `${path}/source`])
      await proxy.says(/listening/)
      // A client that begins a dump, as criu does.
      const client = connectUnix(`${path}/source/streamer-capture.sock`)
      await writeAll(client, Buffer.of(1))
      await proxy.says(new RegExp(`failed: user ${HE} of this host listens at 127.0.0.1:${his.port}\n`))
      assert.is(await his.got(), 'got 0')
      closeFd(client)
      await proxy.stop()
      refused(
        await run('restore-from-socket', ['--from', `127.0.0.1:${his.port}`, '--to-dir', `${path}/out`]),
        his.port,
      )
      assert.is(await his.got(), 'got 0')
    } finally {
      his.stop()
      remove()
    }
  })

  test('he is let be by name, or where nobody is asked', async () => {
    const { path, remove } = temporary()
    const his = await hisListener()
    try {
      for (const options of [['--allow-uid', HE], ['--insecure']]) {
        const from = ['--from', `127.0.0.1:${his.port}`, '--to-dir', `${path}/out`, ...options]
        const client = start('restore-from-socket', from)
        await setTimeout(1000)
        const { stderr } = await client.stop()
        assert.not.match(stderr, 'of this host listens')
        assert.match(await his.got(), /^got \d+$/)
      }
      const flags = ['--insecure', '--allow-uid', HE, '--to-dir', `${path}/none`]
      const both = await run('restore-from-socket', ['--from', '127.0.0.1:1', ...flags])
      assert.is(both.code, 2)
      assert.match(both.stderr, '--allow-uid and --insecure do not go together')
    } finally {
      his.stop()
      remove()
    }
  })
}

test.run()
