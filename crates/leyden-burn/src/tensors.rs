//! Modules as named bytes, and back: weights by their path, gradients as slices.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType as BurnType, Device, Int, Shape, Tensor, TensorData};
use leyden_process::{Error, Result};
use leyden_train::learner::{Gradient, GradientClip, GradientValues, Layer, Parameter};
use leyden_train::state::{DType, NamedTensor, check_same_tensors};

use crate::codes::UNUSABLE_TENSOR;

/// Every parameter and buffer of a module as bytes, in declaration order, named by its path: `fc1.weight`.
///
/// # Errors
/// A failure of the device; `T0703` for quantized tensors.
pub fn named_tensors<M: Module>(module: &M) -> Result<Vec<NamedTensor>> {
    let mut reader = Reader { path: Path::default(), tensors: Vec::new(), error: None };
    // Buffers such as BatchNorm's collect updates lazily; the validation snapshot has them all.
    module.valid().visit(&mut reader);
    reader.error.map_or(Ok(reader.tensors), Err)
}

/// Puts tensors back into a module, by path. Autodiff and trainability stay as they are.
///
/// # Errors
/// `K0104`, listing every tensor that is missing, unknown, or of another shape or type; then nothing is changed and
/// the module is lost: load into a clone to keep it.
pub fn load_tensors<M: Module>(module: M, tensors: &[NamedTensor]) -> Result<M> {
    let expected: Vec<_> = named_tensors(&module)?.into_iter().map(|t| (t.name, t.dtype, t.shape)).collect();
    check_same_tensors("weights", &expected, tensors)?;
    let mut writer = Writer { path: Path::default(), tensors, error: None };
    let module = module.map(&mut writer);
    writer.error.map_or(Ok(module), Err)
}

/// Makes the initial weights that do not exist yet.
pub(crate) fn initialize<M: Module>(module: &M) {
    struct Initializer;
    impl ModuleVisitor for Initializer {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let _ = param.base();
        }
    }
    module.visit(&mut Initializer);
}

/// The parameters of a module: path, type, shape, trainability, and Burn's id, which differs from process to process.
pub(crate) fn parameters<M: Module>(module: &M) -> Vec<(ParamId, Parameter)> {
    let mut lister = Lister::default();
    module.visit(&mut lister);
    lister.parameters
}

/// The modules of a module, outermost first.
pub(crate) fn layers<M: Module>(module: &M) -> Vec<Layer> {
    let mut lister = Lister::default();
    module.visit(&mut lister);
    let Lister { mut layers, parameters, .. } = lister;
    layers.retain(|layer| {
        !parameters.iter().any(|(_, parameter)| parameter.path == layer.path) && !layer.path.is_empty()
    });
    layers
}

/// Shows each trainable parameter's gradient as a slice; what the visitor writes is put back.
pub(crate) fn visit_gradients<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    visit: &mut dyn FnMut(Gradient<'_>) -> Result<()>,
) -> Result<()> {
    let mut shower = GradientShower { path: Path::default(), gradients, visit, error: None };
    module.visit(&mut shower);
    shower.error.map_or(Ok(()), Err)
}

/// Changes each gradient on its device.
pub(crate) fn map_gradients<M: Module>(module: &M, gradients: &mut GradientsParams, map: GradientMap) {
    module.visit(&mut GradientMapper { gradients, map });
}

/// What [`map_gradients`] does.
#[derive(Clone, Copy)]
pub(crate) enum GradientMap {
    Scale(f64),
    Divide(f64),
    Clamp(f64),
}

/// Adds `new` to `sum`, parameter by parameter.
pub(crate) fn add_gradients<M: Module>(module: &M, sum: &mut GradientsParams, new: GradientsParams) {
    module.visit(&mut GradientAdder { sum, new });
}

/// Clips gradients by torch's formulas.
pub(crate) fn clip_gradients<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    clip: GradientClip,
) -> Result<()> {
    match clip {
        GradientClip::Value(limit) => map_gradients(module, gradients, GradientMap::Clamp(limit)),
        GradientClip::Norm(limit) => {
            // The small number keeps a zero norm from dividing by zero.
            let factor = limit / (gradient_norm(module, gradients)? + 1e-6);
            if factor < 1.0 {
                map_gradients(module, gradients, GradientMap::Scale(factor));
            }
        }
    }
    Ok(())
}

/// Gives zeros to each trainable parameter that has no gradient, where `of` says so.
pub(crate) fn zero_gradients<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    of: &dyn Fn(&str) -> bool,
) {
    module.visit(&mut GradientZeroer { path: Path::default(), gradients, of });
}

/// The norm of all gradients together: each tensor's squares are summed on its device, one read fetches the sums, and
/// they are added in `f64`.
pub(crate) fn gradient_norm<M: Module>(module: &M, gradients: &GradientsParams) -> Result<f64> {
    let mut squares = SquareSums { gradients, sums: Vec::new() };
    module.visit(&mut squares);
    if squares.sums.is_empty() {
        return Ok(0.0);
    }
    let sums = Tensor::cat(squares.sums, 0).try_into_data()?;
    Ok(sums.iter::<f64>().sum::<f64>().sqrt())
}

/// The gradient sums as named bytes.
pub(crate) fn named_gradients<M: Module>(
    module: &M,
    gradients: &GradientsParams,
) -> Result<Vec<NamedTensor>> {
    let mut reader = GradientReader { path: Path::default(), gradients, tensors: Vec::new(), error: None };
    module.visit(&mut reader);
    reader.error.map_or(Ok(reader.tensors), Err)
}

/// Gradient sums from named bytes. Tensors are looked up by path: a parameter may have had no gradient.
pub(crate) fn gradients_from<M: Module>(
    module: &M,
    tensors: &[NamedTensor],
    device: &Device,
) -> Result<GradientsParams> {
    let mut gradients = GradientsParams::new();
    let mut writer =
        GradientWriter { path: Path::default(), gradients: &mut gradients, tensors, device, error: None };
    module.visit(&mut writer);
    writer.error.map_or(Ok(gradients), Err)
}

/// A tensor's bytes.
pub(crate) fn named(name: String, data: TensorData) -> Result<NamedTensor> {
    let dtype = from_burn(data.dtype()).ok_or_else(|| {
        Error::new(UNUSABLE_TENSOR, format!("tensor `{name}` has an element type that cannot be saved"))
            .why(format!("it is {:?}", data.dtype()))
            .hint("save before quantizing, or exclude it from the module")
    })?;
    let (bytes, shape, _) = data.into_parts();
    Ok(NamedTensor { name, dtype, shape: shape.to_vec(), bytes: bytes.to_vec() })
}

/// Bytes as Burn takes them.
pub(crate) fn data_of(tensor: &NamedTensor) -> Result<TensorData> {
    let shape = Shape::from(tensor.shape.clone());
    Ok(TensorData::try_from_bytes_vec(tensor.bytes.clone(), shape, to_burn(tensor.dtype))?)
}

/// Where a traversal is.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn joined(&self) -> String {
        self.0.join(".")
    }
}

macro_rules! track_path {
    () => {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
    };
}

struct Reader {
    path: Path,
    tensors: Vec<NamedTensor>,
    error: Option<Error>,
}

impl Reader {
    fn read(&mut self, data: std::result::Result<TensorData, burn::tensor::ExecutionError>) {
        let name = self.path.joined();
        match data.map_err(Error::from).and_then(|data| named(name, data)) {
            Ok(tensor) => self.tensors.push(tensor),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }
}

impl ModuleVisitor for Reader {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.read(param.base().try_into_data());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.read(param.val().try_into_data());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.read(param.val().try_into_data());
    }
}

struct Writer<'a> {
    path: Path,
    tensors: &'a [NamedTensor],
    error: Option<Error>,
}

impl Writer<'_> {
    fn data(&mut self) -> Option<TensorData> {
        let name = self.path.joined();
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        data_of(tensor).map_err(|error| self.error.get_or_insert(error)).ok()
    }
}

impl ModuleMapper for Writer<'_> {
    track_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(data) = self.data() else { return param };
        let dtype = data.dtype();
        param.map(|old| {
            let (device, trainable) = (old.device(), old.is_require_grad());
            Tensor::from_data(data, (&device, dtype)).set_require_grad(trainable)
        })
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let Some(data) = self.data() else { return param };
        let dtype = data.dtype();
        param.map(|old| Tensor::from_data(data, (&old.device(), dtype)))
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        let Some(data) = self.data() else { return param };
        param.map(|old| Tensor::from_data(data, &old.device()))
    }
}

#[derive(Default)]
struct Lister {
    path: Path,
    parameters: Vec<(ParamId, Parameter)>,
    layers: Vec<Layer>,
}

impl Lister {
    fn add(&mut self, id: ParamId, dtype: BurnType, shape: &Shape, trainable: bool) {
        let dtype = from_burn(dtype).unwrap_or(DType::U8);
        self.parameters
            .push((id, Parameter { path: self.path.joined(), dtype, shape: shape.to_vec(), trainable }));
    }
}

impl ModuleVisitor for Lister {
    /// `container` is the type of the module that `name` is a field of.
    fn enter_module(&mut self, name: &str, container: &str) {
        let parent = self.path.joined();
        let kind = container.split_once(':').map_or(container, |(_, kind)| kind);
        if let Some(layer) =
            self.layers.iter_mut().find(|layer| layer.path == parent && layer.kind.is_empty())
        {
            kind.clone_into(&mut layer.kind);
        }
        self.path.enter(name);
        self.layers.push(Layer { path: self.path.joined(), kind: String::new() });
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.id, param.base().dtype(), &param.lazy_shape(), param.is_require_grad());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(param.id, param.val().dtype(), &param.lazy_shape(), false);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.add(param.id, param.val().dtype(), &param.lazy_shape(), false);
    }
}

struct GradientShower<'a> {
    path: Path,
    gradients: &'a mut GradientsParams,
    visit: &'a mut dyn FnMut(Gradient<'_>) -> Result<()>,
    error: Option<Error>,
}

impl GradientShower<'_> {
    fn show<const D: usize>(&mut self, id: ParamId, shape: &[usize]) -> Result<()> {
        let path = self.path.joined();
        let Some(gradient) = self.gradients.remove::<D>(id) else {
            return (self.visit)(Gradient { path: &path, shape, values: None });
        };
        let device = gradient.device();
        let mut data = gradient.try_into_data()?;
        let dtype = data.dtype();
        let values = match dtype {
            BurnType::F32 | BurnType::Flex32 => GradientValues::F32(data.as_mut_slice::<f32>()?),
            BurnType::F64 => GradientValues::F64(data.as_mut_slice::<f64>()?),
            other => {
                return Err(Error::new(
                    UNUSABLE_TENSOR,
                    format!("the gradient of `{path}` has an unknown type"),
                )
                .why(format!("it is {other:?}"))
                .hint("train in f32 or f64"));
            }
        };
        let result = (self.visit)(Gradient { path: &path, shape, values: Some(values) });
        self.gradients.register(id, Tensor::<D>::from_data(data, (&device, dtype)));
        result
    }
}

impl ModuleVisitor for GradientShower<'_> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.error.is_none() && param.is_require_grad() {
            self.error = self.show::<D>(param.id, &param.lazy_shape().to_vec()).err();
        }
    }
}

struct GradientMapper<'a> {
    gradients: &'a mut GradientsParams,
    map: GradientMap,
}

impl ModuleVisitor for GradientMapper<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let mapped = match self.map {
                GradientMap::Scale(factor) => gradient.mul_scalar(factor),
                GradientMap::Divide(divisor) => gradient.div_scalar(divisor),
                GradientMap::Clamp(limit) => gradient.clamp(-limit, limit),
            };
            self.gradients.register(param.id, mapped);
        }
    }
}

struct GradientAdder<'a> {
    sum: &'a mut GradientsParams,
    new: GradientsParams,
}

impl ModuleVisitor for GradientAdder<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(new) = self.new.remove::<D>(param.id) {
            let sum = match self.sum.remove::<D>(param.id) {
                Some(sum) => sum + new,
                None => new,
            };
            self.sum.register(param.id, sum);
        }
    }
}

struct GradientZeroer<'a> {
    path: Path,
    gradients: &'a mut GradientsParams,
    of: &'a dyn Fn(&str) -> bool,
}

impl ModuleVisitor for GradientZeroer<'_> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad()
            || self.gradients.get::<D>(param.id).is_some()
            || !(self.of)(&self.path.joined())
        {
            return;
        }
        let value = param.val().without_autodiff();
        self.gradients
            .register(param.id, Tensor::<D>::zeros(value.shape(), (&value.device(), value.dtype())));
    }
}

struct SquareSums<'a> {
    gradients: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for SquareSums<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.sums.push((gradient.clone() * gradient).sum());
        }
    }
}

struct GradientReader<'a> {
    path: Path,
    gradients: &'a GradientsParams,
    tensors: Vec<NamedTensor>,
    error: Option<Error>,
}

impl ModuleVisitor for GradientReader<'_> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        match gradient.try_into_data().map_err(Error::from).and_then(|data| named(self.path.joined(), data)) {
            Ok(tensor) => self.tensors.push(tensor),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }
}

struct GradientWriter<'a> {
    path: Path,
    gradients: &'a mut GradientsParams,
    tensors: &'a [NamedTensor],
    device: &'a Device,
    error: Option<Error>,
}

impl ModuleVisitor for GradientWriter<'_> {
    track_path!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.joined();
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.name == path) else { return };
        match data_of(tensor) {
            Ok(data) => {
                let dtype = data.dtype();
                self.gradients.register(param.id, Tensor::<D>::from_data(data, (self.device, dtype)));
            }
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }
}

fn from_burn(dtype: BurnType) -> Option<DType> {
    Some(match dtype {
        BurnType::F64 => DType::F64,
        BurnType::F32 | BurnType::Flex32 => DType::F32,
        BurnType::F16 => DType::F16,
        BurnType::BF16 => DType::BF16,
        BurnType::I64 => DType::I64,
        BurnType::I32 => DType::I32,
        BurnType::I16 => DType::I16,
        BurnType::I8 => DType::I8,
        BurnType::U64 => DType::U64,
        BurnType::U32 => DType::U32,
        BurnType::U16 => DType::U16,
        BurnType::U8 => DType::U8,
        BurnType::Bool(burn::tensor::BoolStore::Native | burn::tensor::BoolStore::U8) => DType::Bool,
        _ => return None,
    })
}

fn to_burn(dtype: DType) -> BurnType {
    match dtype {
        DType::F64 => BurnType::F64,
        DType::F32 => BurnType::F32,
        DType::F16 => BurnType::F16,
        DType::BF16 => BurnType::BF16,
        DType::I64 => BurnType::I64,
        DType::I32 => BurnType::I32,
        DType::I16 => BurnType::I16,
        DType::I8 => BurnType::I8,
        DType::U64 => BurnType::U64,
        DType::U32 => BurnType::U32,
        DType::U16 => BurnType::U16,
        DType::Bool => BurnType::Bool(burn::tensor::BoolStore::Native),
        _ => BurnType::U8,
    }
}
