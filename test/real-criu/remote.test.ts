/**
 * criu --remote and the real CRIU: images that it dumped come by a client of the old protocol, as the chain that they
 * might have been, and it restores them by --stream; and the other way round.
 */
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DUMP_SOCKET, RESTORE_SOCKET } from '../../lib/criu-remote/local-wire.ts'
import { within } from '../expect.ts'
import { splitDump, type Writing } from '../support/chains.ts'
import { real } from '../support/criu.ts'
import { daemons } from '../support/daemons.ts'
import { type Form, fakeRemote } from '../support/fake-remote-criu.ts'
import { startHost } from '../support/host.ts'
import { type Load, loads, patternLoad } from '../support/loads.ts'
import { root, run, shell } from '../support/run.ts'
import { asServed } from '../support/served.ts'

const test = suite('real-criu/remote')

function remoteCriu(args: string[]) {
  return run(process.execPath, ['--import', 'tsx', join(root, 'test/support/fake-remote-criu.ts'), ...args], {
    cwd: root,
  })
}

function withCriu(criu: string, version: string): void {
  const ways: [Load, Form, Writing[]][] = [
    [patternLoad(16), 'pipes', ['before flags', '4.1', '4.1']],
    [loads[1] as Load, 'socket', ['4.1', 'before flags']],
  ]
  for (const [load, form, writings] of ways) {
    test(`${load.name}: rounds and a dump by --remote (${form}), restored by criu ${version} --stream`, async () => {
      const here = await daemons()
      const started = await load.start(here.folder)
      const task = spawn('sleep', ['1000'], { stdio: 'ignore' })
      const host = await startHost()
      try {
        const full = join(here.folder, 'full')
        mkdirSync(full)
        const dumped = await run(criu, ['dump', '-t', String(started.pid), '-D', full])
        assert.is(dumped.code, 0, dumped.stderr)
        await started.gone
        const log = readFileSync(join(here.folder, 'load.log'))
        const rounds = dirname(splitDump(full, join(here.folder, 'rounds'), writings))
        for (let number = 1; number <= writings.length; number++) {
          const images = join(rounds, String(number))
          const action = number < writings.length ? 'pre-dump' : 'dump'
          const line = [action, '-t', String(task.pid), '-D', images, '--remote', '--images', images]
          const ran = await remoteCriu([...line, '--form', form, '--socket', join(here.source, DUMP_SOCKET)])
          assert.is(ran.code, 0, ran.stderr)
          const { parent } = JSON.parse(ran.stdout.toString()) as { parent: string }
          const ids: unknown = JSON.parse(Buffer.from(parent, 'hex').toString())
          assert.equal(
            ids,
            Array.from({ length: number }, (_, at) => join(rounds, String(at + 1))),
          )
        }
        await within(here.proxy.says(/handed over/))
        writeFileSync(join(here.folder, 'load.log'), log)
        const restored = await shell(`${host.enter.join(' ')} ${criu} restore --stream -d -D ${here.target}`)
        assert.is(restored.code, 0, restored.stderr + here.cache.stderr())
        await started.verify(host.outerPid(started.pid))
      } finally {
        started.kill()
        task.kill('SIGKILL')
        await host.stop()
        await here.stop()
      }
    })
  }

  test(`dumped by criu ${version} --stream: a --remote restore reads what a --stream restore reads`, async () => {
    const here = await daemons()
    const load = await patternLoad(16).start(here.folder)
    try {
      const dumped = await run(criu, ['dump', '--stream', '-t', String(load.pid), '-D', here.source])
      assert.is(dumped.code, 0, dumped.stderr)
      await within(here.proxy.says(/handed over/))
      const images = join(here.folder, 'images')
      const pulled = await run('restore-from-socket', ['--from', `127.0.0.1:${here.port}`, '--to-dir', images])
      assert.is(pulled.code, 0, pulled.stderr)
      const names = readdirSync(images)
      assert.ok(names.length > 10, names.join(' '))
      const remote = fakeRemote(join(here.target, RESTORE_SOCKET), '?')
      const [id = ''] = (await within(remote.pull())) ?? []
      // One snapshot becomes one process: one restore at a time.
      const read = new Map<string, Buffer | undefined>()
      for (const name of names) read.set(name, await within(remote.read(name, id)))
      await remote.finish('restore')
      await within(here.cache.says(/served: \d+ images.*\n(.*\n)*.*served: /))
      const stream = here.restore()
      for (const name of names) {
        const bytes = await asServed(name, readFileSync(join(images, name)))
        assert.ok((await within(stream.image(name)))?.equals(bytes), name)
        assert.ok(read.get(name)?.equals(bytes), name)
      }
      stream.close()
    } finally {
      load.kill()
      await here.stop()
    }
  })
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else withCriu(real.path, real.version)

test.run()
