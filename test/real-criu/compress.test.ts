/** The real CRIU, and a process tree whose memory is compressed on its way. */
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { acrossRelay } from '../support/across-relay.ts'
import { real } from '../support/criu.ts'
import { startHost } from '../support/host.ts'
import { loads } from '../support/loads.ts'
import { shell, temporary } from '../support/run.ts'

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
    const options = ['--compress', 'auto', '--rate-limit', '16M', '--until', 'running']
    const breaks = [1_000_000, 3_000_000].map((up) => ({ up, how: 'cut' as const }))
    await acrossRelay(load, options, breaks, async ({ host, started, cache, proxy, relay, dump }) => {
      const dumped = await dump(criu)
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      const [, mib = ''] = await proxy.says(/sent and sealed by the cache: \d+ images, ([\d.]+) MiB/)
      await proxy.says(/handed over: the source is gone/)
      assert.is(relay.links, 3)
      assert.ok(relay.up < Number(mib) * 2 ** 20 * 0.8, `${relay.up} bytes for ${mib} MiB`)
      await started.gone
      await started.verify(host.outerPid(started.pid))
    })
  })
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else compresses(real.path)

test.run()
