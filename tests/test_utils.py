"""What ``import mmrest`` and ``register_all_modules`` make known to the mm packages."""
import subprocess
import sys
import textwrap


def python(code, cwd):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=cwd, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_hub_knows_our_configs_as_bases_and_builds_our_models(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmrest::mask_rcnn/rest_small_fpn_1x_coco.py'\n"
        "model = dict(backbone=dict(arch='lite'))\n")
    assert python('''
        import mmrest, torch
        from mmengine.config import Config
        from mmengine.hub import get_config, get_model
        mine = Config.fromfile('mine.py')
        ours = get_config('mmrest::mask_rcnn/rest_small_fpn_1x_coco.py')
        assert ours.model.backbone.arch == 'small'
        assert mine.model.neck == ours.model.neck
        assert mine.model.backbone == dict(type='ResT', arch='lite', drop_path_rate=0.1)
        ablation = 'mmrest::classification/ablations/rest_lite_msa_8xb256_100e_in1k.py'
        assert get_config(ablation).model.backbone.attention == 'msa'
        from mmrest.apis import read_config
        dataset = read_config('mine.py').train_dataloader.dataset
        from mmdet.registry import DATASETS
        assert type(DATASETS.build(dict(dataset, lazy_init=True))).__name__ == 'CocoDataset'
        names = ('classification/rest_lite_8xb256_in1k', 'retinanet/rest_lite_fpn_1x_coco',
                 'semantic_fpn/rest_small_fpn_8xb4_40k_ade20k')
        with torch.device('meta'):
            print([type(get_model(f'mmrest::{name}.py')).__name__ for name in names])
    ''', tmp_path) == "['ImageClassifier', 'RetinaNet', 'EncoderDecoder']"


def test_mmpretrain_lists_and_builds_our_classifiers(tmp_path):
    assert python('''
        import mmpretrain, torch
        from mmrest import utils
        from mmrest.utils import register_all_modules
        file, utils.__file__ = utils.__file__, 'not/installed/utils.py'
        register_all_modules()
        assert not mmpretrain.list_models('rest_*')
        utils.__file__ = file
        register_all_modules()
        register_all_modules()
        names = mmpretrain.list_models('*rest_*')
        ours = [n for n in names if n.startswith('rest_')]
        assert [n for n in ours if '100e' not in n] == [
            f'rest_{a}_8xb256_in1k' for a in ('base', 'large', 'lite', 'small')], names
        assert len(ours) == 4 + 8, ours  # the ablations
        with torch.device('meta'):
            model = mmpretrain.get_model('rest_lite_8xb256_in1k')
        print(type(model.backbone).__name__, sum(p.numel() for p in model.parameters()))
    ''', tmp_path) == 'ResT 10508300'


def test_importing_mmrest_registers_the_model_and_nothing_more(tmp_path):
    """Nothing in sys.meta_path, no hook. Nothing but torch and MMEngine is needed."""
    assert python('''
        import sys
        for name in ('cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'onnx',
                     'pycocotools', 'safetensors', 'sahi', 'sklearn', 'timm', 'torchvision'):
            sys.modules[name] = None
        finders = list(sys.meta_path)
        import mmrest, torch
        from mmrest.collect_env import collect_env
        from mmengine.registry import HOOKS, MODELS, TRANSFORMS
        added = {type(f).__module__ for f in sys.meta_path if f not in finders}
        assert not added, added
        assert MODELS.get('ResT') is mmrest.ResT
        assert collect_env()['Backend'].startswith('Attention runs on')
        features = mmrest.ResT('lite').eval()(torch.zeros(1, 3, 50, 70))
        print([tuple(x.shape) for x in features][3],
              'SkipUnreadable' in TRANSFORMS.module_dict, 'ReseedHook' in HOOKS.module_dict)
    ''', tmp_path) == '(1, 512, 2, 3) False False'


def test_engine_and_all_modules_work_without_mmpretrain(tmp_path):
    assert python('''
        import sys
        sys.modules['mmpretrain'] = None
        from mmrest.utils import register_all_modules
        register_all_modules()
        from mmengine.registry import HOOKS, TRANSFORMS
        print(TRANSFORMS.get('SkipUnreadable').__name__, HOOKS.get('ReseedHook').__name__)
    ''', tmp_path) == 'SkipUnreadable ReseedHook'
