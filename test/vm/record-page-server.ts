/**
 * Runs in the virtual machine: record-page-server.js OUT CRIU... writes down what criu says to a stock `criu
 * page-server` and is answered, in two pre-dumps and a dump, each with the one before as its parent. The two processes
 * are small, and have no environment.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, mkdirSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { finished } from 'node:stream/promises'
import { setTimeout } from 'node:timers/promises'
import { vm } from '../support/programs.ts'
import { run, temporary } from '../support/run.ts'

const counting = 'while :; do i=$((i + 1)); done'

async function done(program: string, args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, { cwd: '/' })
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: exit code ${code}\n${stdout}${stderr}`)
  return stdout.toString() + stderr
}

/** Stands between a criu and its page server, for one connection. */
function tee(port: number, path: string): { listening: Promise<number>; over: Promise<void> } {
  const server = net.createServer({ allowHalfOpen: true })
  const over = (async () => {
    const [criu] = (await once(server, 'connection')) as [net.Socket]
    const there = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    const files = [createWriteStream(`${path}.bin`), createWriteStream(`${path}.reply.bin`)] as const
    criu.on('data', (bytes) => files[0].write(bytes)).pipe(there)
    there.on('data', (bytes) => files[1].write(bytes)).pipe(criu)
    await Promise.all([finished(criu), finished(there)])
    for (const file of files) await finished(file.end())
    server.close()
  })()
  server.listen(0, '127.0.0.1')
  return { listening: once(server, 'listening').then(() => (server.address() as net.AddressInfo).port), over }
}

async function record(criu: string, out: string): Promise<void> {
  const version = /Version: (\S+)/.exec(await done(criu, ['--version']))?.[1] ?? 'unknown'
  const { path, remove } = temporary()
  const line = [vm.busybox, 'sh', '-c', `(${counting}) & ${counting}`]
  const load = spawn('env', ['-i', 'setsid', ...line], { stdio: 'ignore', cwd: '/' })
  const port = 20_000
  try {
    await setTimeout(1000)
    for (const round of [1, 2, 3]) {
      const [server, local] = [join(path, 'server', String(round)), join(path, 'local', String(round))]
      for (const directory of [server, local]) mkdirSync(directory, { recursive: true })
      const parent = round === 1 ? [] : ['--prev-images-dir', `../${round - 1}`]
      const [at, address] = [port + round, ['--address', '127.0.0.1', '--port']]
      // It goes into the background when it listens, and would keep our pipes.
      const quietly = ['-c', 'exec "$0" "$@" >/dev/null 2>&1', criu]
      await done('sh', [...quietly, 'page-server', '-d', ...address, String(at), '-D', server, ...parent])
      const between = tee(at, join(out, `vm-${version.replaceAll('.', '')}-round${round}`))
      const to = [...address, String(await between.listening)]
      const step = round === 3 ? 'dump' : 'pre-dump'
      const options = ['--track-mem', '-t', String(load.pid), '-D', local, ...parent]
      await done(criu, [step, '--page-server', ...to, ...options])
      await between.over
      await setTimeout(300)
    }
  } finally {
    load.kill('SIGKILL')
    remove()
  }
}

const [out = '.', ...programs] = process.argv.slice(2)
for (const criu of programs) await record(criu, out)
process.exit()
