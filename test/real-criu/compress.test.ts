/** The real CRIU, and a process tree whose memory is compressed on its way. */
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startRelay } from '../support/breaking-relay.ts'
import { real } from '../support/criu.ts'
import { startProxy } from '../support/daemons.ts'
import { startHost } from '../support/host.ts'
import { loads } from '../support/loads.ts'
import { root, run, shell, start, temporary } from '../support/run.ts'

const test = suite('real-criu/compress')
const load = loads.find(({ name }) => name.startsWith('a tree')) as (typeof loads)[number]

function compresses(criu: string): void {
  test('dump-to-stdout -t $PID --compress zstd > app.img', async () => {
    const { path, remove } = temporary()
    const [host, started] = [await startHost(), await load.start(path)]
    try {
      const size = async (how: string, more: string): Promise<number> => {
        const ran = await shell(`dump-to-stdout -t ${started.pid} --compress ${how} ${more} > ${how}.img`, {
          cwd: path,
        })
        assert.is(ran.code, 0, ran.stderr)
        return statSync(join(path, `${how}.img`)).size
      }
      const plain = await size('none', '-- -R')
      assert.ok((await size('zstd', '')) < plain / 2)
      await started.gone
      const restored = await shell(`${host.enter.join(' ')} restore-from-socket < zstd.img`, { cwd: path })
      assert.is(restored.code, 0, restored.stderr)
      await started.verify(host.outerPid(started.pid))
    } finally {
      started.kill()
      await host.stop()
      remove()
    }
  })

  test('proxy --compress auto --rate-limit: it arrives smaller, over a link that is cut', async () => {
    const { path, remove } = temporary()
    const [source, target] = [join(path, 'source'), join(path, 'target')]
    const [host, started] = [await startHost(), await load.start(path)]
    const [enter = '', ...inside] = host.enter
    const serving = [join(root, 'scripts', 'bin', 'cache'), '--port', '0', '-D', target, '--restore']
    const cache = start(enter, [...inside, ...serving])
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    const relay = await startRelay(port)
    relay.plan({ up: 1_000_000, how: 'cut' }, { up: 3_000_000, how: 'cut' })
    const proxy = await startProxy(source, relay.port, [
      '--compress',
      'auto',
      '--rate-limit',
      '16M',
      '--until',
      'running',
    ])
    try {
      const options = ['-t', String(started.pid), '-D', source, '--action-script', join(source, 'post-dump')]
      const dumped = await run(criu, ['dump', '--stream', ...options], { cwd: path })
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      const [, mib = ''] = await proxy.says(/sent and sealed by the cache: \d+ images, ([\d.]+) MiB/)
      await proxy.says(/handed over: the source is gone/)
      assert.is(relay.links, 3)
      assert.ok(relay.up < Number(mib) * 2 ** 20 * 0.8, `${relay.up} bytes for ${mib} MiB`)
      await started.gone
      await started.verify(host.outerPid(started.pid))
    } finally {
      started.kill()
      await Promise.all([proxy.stop(), cache.stop()])
      await host.stop()
      relay.close()
      remove()
    }
  })
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else compresses(real.path)

test.run()
